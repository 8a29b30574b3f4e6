import type { JsonObject } from './json.js';

/** A mapping in the process's memory. */
export interface Mapping {
  readonly address: bigint;
  readonly length: number;
}

/** A thread of the script: what it has answered so far, and when it is done. */
export interface ScriptThread {
  readonly results: Promise<readonly JsonObject[]>;
  signal(signo: number): Promise<unknown>;
}

/** What a name in the script stands for. */
export interface Handle {
  fd: number;
  map?: Mapping;
  /** The mapped kvm_run of a vCPU. */
  run?: Mapping;
  /** The mapped dirty ring of a vCPU, and the next entry to harvest. */
  ring?: Mapping & { position: number };
  thread?: ScriptThread;
}

/** Descriptor of a handle that was never made: not open. */
const NEVER_MADE = 88_888;
const FIRST_FD = 100;

/** The names of one process of the script. A descriptor number is never used again, so a closed handle stays EBADF. */
export class Handles {
  private readonly byName: Map<string, Handle>;
  private nextFd: number;

  constructor(origin?: Handles) {
    this.byName = new Map(origin === undefined ? [] : [...origin.byName].map(([name, handle]) => [name, { ...handle }]));
    this.nextFd = origin?.nextFd ?? FIRST_FD;
  }

  find(name: string): Handle | undefined {
    return this.byName.get(name);
  }

  fd(name: string): number {
    return this.byName.get(name)?.fd ?? NEVER_MADE;
  }

  /** The handle of that name, made if need be, with no descriptor yet. */
  define(name: string): Handle {
    let handle = this.byName.get(name);
    if (handle === undefined) {
      handle = { fd: -1 };
      this.byName.set(name, handle);
    }
    handle.fd = -1;
    return handle;
  }

  reserveFd(): number {
    return this.nextFd++;
  }
}
