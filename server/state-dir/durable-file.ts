import { closeSync, fsyncSync, openSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

/** Makes a directory's entries outlive a loss of power: a new name in it is on disk only then. */
const syncDirectory = (path: string): void => {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
};

/** Gives a file new contents, all or none of them whenever the power goes. Only its owner may read it. */
export const replaceFile = (path: string, data: string): void => {
  const next = `${path}.new`;
  const fd = openSync(next, 'w', 0o600);
  try {
    writeFileSync(fd, data);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(next, path);
  syncDirectory(dirname(path));
};
