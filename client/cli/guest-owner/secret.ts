import { type Command, InvalidArgumentError } from 'commander';
import { type Secret, sealSecret, secretTable } from '../../guest-owner/secret.js';
import { fields } from '../output.js';
import type { Console, GlobalOptions } from '../session.js';
import { fileArgument, writeFiles } from './files.js';
import { runLocal } from './local-command.js';

interface SecretOptions extends GlobalOptions {
  readonly tek: Uint8Array;
  readonly tik: Uint8Array;
  readonly measurement: Uint8Array;
  readonly secret: readonly Secret[];
  readonly out: string;
}

const secretArgument = (text: string, before: readonly Secret[] = []): Secret[] => {
  const [guid = '', path] = text.split('=', 2);
  if (path === undefined) throw new InvalidArgumentError(`'${text}' is not GUID=FILE.`);
  return [...before, { guid, data: fileArgument(path) }];
};

/** `simkvm secret seal`: a packet that only the guest whose launch was measured can be given. */
export const registerSecret = (program: Command, console: Console): void => {
  program
    .command('secret')
    .description('secrets for guests that are being launched')
    .command('seal')
    .description('make a packet for KVM_SEV_LAUNCH_SECRET: header.bin and secret.bin')
    .requiredOption('--tek <file>', "the session's encryption key, 16 bytes", fileArgument)
    .requiredOption('--tik <file>', "the session's integrity key, 16 bytes", fileArgument)
    .requiredOption('--measurement <file>', 'the measurement, once `simkvm attest measurement` has verified it', fileArgument)
    .requiredOption('--secret <guid=file>', 'a secret, by the GUID that the guest looks for; may be repeated', secretArgument)
    .requiredOption('--out <folder>', 'where the files go')
    .action((_options, command: Command) => {
      const { tek, tik, measurement, secret, out, ...options } = command.optsWithGlobals<SecretOptions>();
      return runLocal(
        options,
        console,
        () => {
          const { header, data } = sealSecret({ tek, tik }, measurement, secretTable(secret));
          return { value: writeFiles(out, { 'header.bin': header, 'secret.bin': data }), ok: true };
        },
        (files) => fields(Object.entries(files)),
      );
    });
};
