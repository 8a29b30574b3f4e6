import type { Command } from 'commander';
import { CpuVendor, type Host } from '../../gen/messages.js';
import { policyName } from '../post-move-policy.js';
import { bytes, fields, table } from './output.js';
import { type Console, type GlobalOptions, runCommand } from './session.js';

const enumWord = (name: string | undefined, prefix: string): string => (name ?? 'unknown').replace(prefix, '').toLowerCase();

const renderHost = (host: Host): string => {
  const { memory, sev, tdx, options } = host;
  const pairs: [string, string | number | bigint | boolean][] = [
    ['version', host.version],
    ['kernel', host.kernel_version],
    ['cpu', `${host.cpu_model} (${enumWord(CpuVendor[host.vendor], 'CPU_VENDOR_')}), ${host.cpus} online`],
    ['seed', host.seed],
  ];
  if (memory !== null) pairs.push(['memory', `${bytes(memory.allocated_bytes)} of ${bytes(memory.total_bytes)} in use`]);
  if (sev !== null)
    pairs.push(
      ['SEV', `${['SEV', sev.es && 'SEV-ES', sev.snp && 'SEV-SNP'].filter(Boolean).join(', ')}; platform ${sev.platform_state}`],
      ['ASIDs', `SEV-ES 1 to ${sev.min_sev_asid - 1}, SEV ${sev.min_sev_asid} to ${sev.max_asid}`],
      ['ASIDs in use', `SEV ${sev.sev_asids_used}, SEV-ES ${sev.sev_es_asids_used}; ${sev.asids_to_reclaim} to reclaim`],
      ['firmware', `${sev.api_major}.${sev.api_minor} build ${sev.build}, ${sev.guest_count} guest contexts`],
    );
  if (tdx !== null) pairs.push(['TDX', `${tdx.hkids_used} of ${tdx.hkids} HKIDs in use`]);
  pairs.push(['policy', policyName(host.post_move_policy)]);
  if (options !== null) pairs.push(['exclusive irqfd', options.exclusive_irqfd]);
  pairs.push(
    ['processes', host.processes],
    ['VMs', host.vms],
    ['findings', host.findings],
    ['simulated time', `${host.simulated_ns} ns`],
  );
  return fields(pairs);
};

const renderKmem = (host: Host): string =>
  table(
    ['KERNEL MEMORY', 'BYTES'],
    host.kmem.map(({ type, charged_bytes }) => [type, charged_bytes]),
  );

/** `simkvm host`: what the host is. */
export const registerHost = (program: Command, console: Console): void => {
  program
    .command('host')
    .description('show what the host is: CPU, keys, memory, policy, findings')
    .action((_options, command: Command) =>
      runCommand(
        command.optsWithGlobals<GlobalOptions>(),
        console,
        (simkvm) => simkvm.host.getHost(),
        (host) => (host.kmem.length === 0 ? renderHost(host) : `${renderHost(host)}\n\n${renderKmem(host)}`),
      ),
    );
};
