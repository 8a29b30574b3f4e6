import { Command, CommanderError, Help, InvalidArgumentError, type Option } from 'commander';
import { registerLab } from '../lab/index.js';
import { EXIT } from './failure.js';
import { registerAttest } from './guest-owner/attest.js';
import { registerCertificates } from './guest-owner/certificates.js';
import { registerDigest } from './guest-owner/digest.js';
import { registerSecret } from './guest-owner/secret.js';
import { registerSession } from './guest-owner/session.js';
import { registerHost } from './host.js';
import { registerMigrate } from './migrate.js';
import { registerMigrations } from './migrations.js';
import { type Console, DEFAULT_TARGET, hostAndPort, processConsole } from './session.js';
import { registerVms } from './vms.js';

const vmId = (text: string): number => {
  const id = Number(text);
  if (Number.isInteger(id) && id >= 1 && id <= 0xffff_ffff) return id;
  throw new InvalidArgumentError(`'${text}' is no number of a VM.`);
};

/** Commander does not say in its help which options may not be left out. */
const optionDescription = (option: Option): string =>
  `${new Help().optionDescription(option)}${option.mandatory ? ' (required)' : ''}`;

/** The command `simkvm`. Each subcommand registers itself; global options may stand before or after it. */
const createProgram = (console: Console): Command => {
  const program = new Command('simkvm')
    .description('Looks into a simulated KVM host for confidential VMs, and runs experiments on it.')
    .option('--target <host:port>', 'the daemon', hostAndPort, DEFAULT_TARGET)
    .option('--tls-ca <file>', 'authorities that vouch for the daemon (PEM), where it speaks TLS')
    .option('--tls-cert <file>', 'your certificate (PEM)')
    .option('--tls-key <file>', 'its private key (PEM)')
    .option('--json', 'print JSON: 64-bit integers as strings, bytes as base64')
    .configureOutput({ writeOut: (text) => console.out(text.trimEnd()), writeErr: (text) => console.error(text.trimEnd()) })
    .configureHelp({ optionDescription })
    .exitOverride();
  registerHost(program, console);
  registerVms(program, console, vmId);
  registerMigrate(program, console);
  registerMigrations(program, console);
  registerCertificates(program, console);
  registerAttest(program, console);
  registerSession(program, console);
  registerDigest(program, console);
  registerSecret(program, console);
  registerLab(program, console);
  return program;
};

/** Runs `simkvm` with the arguments after its name. What is wrong with them is said, and is the exit code. */
export const runProgram = async (args: readonly string[], console: Console = processConsole): Promise<void> => {
  try {
    await createProgram(console).parseAsync([...args], { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    console.exitCode(error.exitCode === 0 ? 0 : EXIT.USAGE);
  }
};
