import type { Command } from 'commander';
import { createLaunchSession } from '../../guest-owner/session.js';
import { parseSevCertificate } from '../../guest-owner/sev-certificate.js';
import { fields } from '../output.js';
import type { Console, GlobalOptions } from '../session.js';
import { type NamedFile, namedFileArgument, numberArgument, reading, writeFiles } from './files.js';
import { runLocal } from './local-command.js';

interface SessionOptions extends GlobalOptions {
  readonly pdh: NamedFile;
  readonly policy: number;
  readonly out: string;
}

/** `simkvm session create`: what a guest's owner sends to a platform for a launch. */
export const registerSession = (program: Command, console: Console): void => {
  program
    .command('session')
    .description('sessions of SEV launches')
    .command('create')
    .description(
      'make transport keys, and wrap them for a platform: session.bin and godh.cert are for it, tek.bin and tik.bin secret',
    )
    .requiredOption('--pdh <file>', "the platform's PDH certificate, which `simkvm attest platform` verifies", namedFileArgument)
    .requiredOption('--policy <number>', 'guest policy', numberArgument)
    .requiredOption('--out <folder>', 'where the files go')
    .action((_options, command: Command) => {
      const { pdh, policy, out, ...options } = command.optsWithGlobals<SessionOptions>();
      return runLocal(
        options,
        console,
        () => {
          reading(pdh, (bytes) => parseSevCertificate(bytes, 'PDH'));
          const { session, certificate, keys } = createLaunchSession({ pdh: pdh.bytes, policy });
          const files = { 'session.bin': session, 'godh.cert': certificate, 'tek.bin': keys.tek, 'tik.bin': keys.tik };
          return { value: writeFiles(out, files), ok: true };
        },
        (files) => fields(Object.entries(files)),
      );
    });
};
