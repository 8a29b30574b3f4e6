import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { InvalidArgumentError } from 'commander';

/** A file of the command line. */
export const fileArgument = (path: string): Uint8Array => {
  try {
    return new Uint8Array(readFileSync(path));
  } catch (error) {
    throw new InvalidArgumentError(`'${path}' cannot be read: ${error instanceof Error ? error.message : String(error)}`);
  }
};

/** A file that is spoken of by its name, because there may be several of its kind. */
export interface NamedFile {
  readonly path: string;
  readonly bytes: Uint8Array;
}

export const namedFileArgument = (path: string): NamedFile => ({ path, bytes: fileArgument(path) });

/** What `read` makes of a file. @throws RangeError that names the file */
export const reading = <T>({ path, bytes }: NamedFile, read: (bytes: Uint8Array) => T): T => {
  try {
    return read(bytes);
  } catch (error) {
    throw error instanceof RangeError ? new RangeError(`${path}: ${error.message}`, { cause: error }) : error;
  }
};

/** For an option that may be given more than once. */
export const namedFileArguments = (path: string, before: readonly NamedFile[] = []): NamedFile[] => [
  ...before,
  namedFileArgument(path),
];

/** Bytes in hex. */
export const hexArgument = (text: string): Uint8Array => {
  if (!/^([0-9a-f]{2})+$/i.test(text))
    throw new InvalidArgumentError(`'${text}' is no string of bytes in hex: two digits each, without 0x.`);
  return new Uint8Array(Buffer.from(text, 'hex'));
};

/** Decimal, or hexadecimal with 0x. */
export const numberArgument = (text: string): number => {
  const value = Number(text);
  if (text !== '' && Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff) return value;
  throw new InvalidArgumentError(`'${text}' is no whole number from 0 to 0xffffffff.`);
};

/** As `numberArgument`, of 8 bits. */
export const byteArgument = (text: string): number => {
  const value = numberArgument(text);
  if (value <= 0xff) return value;
  throw new InvalidArgumentError(`'${text}' is no whole number from 0 to 255.`);
};

/** As `numberArgument`, of 64 bits. */
export const bigintArgument = (text: string): bigint => {
  const value = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? BigInt(text) : -1n;
  if (value >= 0n && value < 2n ** 64n) return value;
  throw new InvalidArgumentError(`'${text}' is no whole number from 0 to 0xffffffffffffffff.`);
};

/** As `numberArgument`, of a virtual machine privilege level. */
export const vmplArgument = (text: string): number => {
  const value = numberArgument(text);
  if (value <= 3) return value;
  throw new InvalidArgumentError(`'${text}' is no VMPL: 0 to 3.`);
};

/** A folder, and those that it is in. One by one: where there can be none, `recursive` does not end. */
const makeFolder = (path: string): void => {
  if (existsSync(path)) return;
  makeFolder(dirname(path));
  mkdirSync(path);
};

/**
 * Writes files into a folder, which is made where there is none; their paths. Keys are for their owner alone.
 * @throws RangeError if they cannot be written there
 */
export const writeFiles = (folder: string, files: Readonly<Record<string, Uint8Array>>): Record<string, string> => {
  try {
    makeFolder(folder);
    return Object.fromEntries(
      Object.entries(files).map(([name, contents]) => {
        const path = join(folder, name);
        writeFileSync(path, contents, { mode: 0o600 });
        return [name, path];
      }),
    );
  } catch (error) {
    throw new RangeError(`'${folder}' cannot be written to: ${error instanceof Error ? error.message : String(error)}`);
  }
};
