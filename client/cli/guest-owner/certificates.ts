import { X509Certificate } from 'node:crypto';
import type { Command } from 'commander';
import type { SimKvm } from '../../sim-kvm.js';
import { fields } from '../output.js';
import { type Console, type GlobalOptions, runCommand } from '../session.js';
import { writeFiles } from './files.js';

interface CertificatesOptions extends GlobalOptions {
  readonly out: string;
  readonly vlek?: string;
}

const pem = (...certificates: readonly Uint8Array[]): Uint8Array =>
  Buffer.from(certificates.map((certificate) => new X509Certificate(certificate).toString()).join(''));

/** What /dev/sev exports: the platform's PDH, and the chain of PEK, OCA and CEK. It makes the platform's keys, where there are none yet. */
const exportPlatform = async (simkvm: SimKvm): Promise<Record<string, Uint8Array>> => {
  await using process = await simkvm.attach({ name: 'simkvm certificates' });
  await using sev = await process.openSev();
  const { pdh_cert_address_bytes: pdh, cert_chain_address_bytes: chain } = await sev.pdhCertExport();
  return { 'pdh.cert': pdh, 'chain.cert': chain };
};

/** What an owner needs to verify what a host says: the platform's own certificates, and those that AMD's service gives for its chip. */
const collect = async (simkvm: SimKvm, vlek: string | undefined): Promise<Record<string, Uint8Array>> => {
  const { keyDistribution } = simkvm;
  const { ark_der: ark, ask_der: ask, amd_certs: amd } = await keyDistribution.getAuthorities();
  const files = {
    ...(await exportPlatform(simkvm)),
    'cek.cert': await keyDistribution.getCek(),
    'amd.cert': amd,
    'ark.pem': pem(ark),
    'vcek-chain.pem': pem(await keyDistribution.getVcek(), ask, ark),
  };
  if (vlek === undefined) return files;
  const { wrapped, vlek_der: certificate } = await keyDistribution.orderVlek(vlek);
  return { ...files, 'vlek.bin': wrapped, 'vlek-chain.pem': pem(certificate, ask, ark) };
};

/** `simkvm certificates`: the files that `simkvm attest` and `simkvm session` take. */
export const registerCertificates = (program: Command, console: Console): void => {
  program
    .command('certificates')
    .description(
      "write a host's certificates into files: pdh.cert, chain.cert, cek.cert and amd.cert for `attest platform`, " +
        'vcek-chain.pem and ark.pem for `attest verify`',
    )
    .requiredOption('--out <folder>', 'where the files go')
    .option('--vlek <provider>', 'order a VLEK for a cloud provider, too: vlek.bin for SNP_VLEK_LOAD, and vlek-chain.pem')
    .action((_options, command: Command) => {
      const { out, vlek, ...options } = command.optsWithGlobals<CertificatesOptions>();
      return runCommand(
        options,
        console,
        async (simkvm) => writeFiles(out, await collect(simkvm, vlek)),
        (files) => fields(Object.entries(files)),
      );
    });
};
