import { status } from '@grpc/grpc-js';
import { KvmError } from '../kvm-error.js';

/** How the program ends, for scripts. */
export const EXIT = {
  /** The host has refused. */
  REFUSED: 1,
  /** The command line is wrong; commander uses it too. */
  USAGE: 2,
  /** No host answers. */
  UNREACHABLE: 3,
} as const;

/** What a person may do about a failure, where something is known to help. */
const advice = (error: KvmError): string | null => {
  if (error.code === status.UNAVAILABLE)
    return 'start a host with `simkvmd`, or name another one with --target HOST:PORT; one that speaks TLS wants --tls-ca, --tls-cert and --tls-key';
  if (error.code === status.DEADLINE_EXCEEDED) return 'the host is there but has not answered in time; try again';
  if (error.deathCause?.kind === 'moved')
    return `the VM's context is in VM ${error.deathCause.toVmId} now; close this VM's descriptors, or choose another policy before a move`;
  if (error.reason === 'NO_SUCH_MIGRATION') return 'see `simkvm migrations` for those that this host knows';
  if (error.errno === 'ENOENT') return 'see `simkvm vms` for the VMs that there are';
  return error.details.allowed === undefined ? null : `allowed: ${error.details.allowed}`;
};

/** A failure for people: what was refused, by which check, on which object, and what to do. */
export const describeFailure = (thrown: unknown): string => {
  const error = KvmError.from(thrown);
  const rows: [string, string | null][] = [
    ['reason', error.errno === null ? null : error.reason],
    ['object', error.object],
    ['state', error.state],
    ['checked by', error.kernelRef],
    ['policy', error.policy],
    ['firmware', error.fwError === null ? null : `0x${error.fwError.toString(16)}`],
    ['what to do', advice(error)],
  ];
  const lines = rows.flatMap(([name, value]) => (value === null ? [] : [`  ${`${name}:`.padEnd(12)}${value}`]));
  return [`simkvm: ${error.message}`, ...lines].join('\n');
};

export const exitCodeOf = (thrown: unknown): number =>
  KvmError.from(thrown).code === status.UNAVAILABLE ? EXIT.UNREACHABLE : EXIT.REFUSED;
