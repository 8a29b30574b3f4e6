import { keysOf, Machine, type MachineOptions } from './machine.js';
import { Middle } from './middle.js';
import type { Link, NetworkNamespace, NetworkRig } from './network-rig.js';

const PORT = 7341;

export interface CrossingOptions {
  /** Of both daemons. */
  readonly args?: readonly string[];
  readonly here?: MachineOptions;
  readonly there?: MachineOptions;
  /** At which of the test's addresses a machine finds the one in the middle. @default 127.0.0.1 */
  readonly middle?: { readonly fromHere: string; readonly fromThere: string };
}

/** Two machines that know each other, with somebody in the middle of everything that their daemons say to each other. */
export class Crossing implements AsyncDisposable {
  readonly here: Machine;
  readonly there: Machine;
  readonly middle: Middle;
  private addresses = { here: '', there: '' };

  private constructor(private readonly options: CrossingOptions) {
    this.here = new Machine(options.here);
    this.there = new Machine(options.there);
    const sealed = options.args?.includes('--migration-unsealed') !== true;
    this.middle = new Middle(sealed ? keysOf(this.here, this.there) : null);
  }

  static async start(options: CrossingOptions = {}): Promise<Crossing> {
    const crossing = new Crossing(options);
    try {
      await crossing.start();
      return crossing;
    } catch (error) {
      await crossing[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Where `here` dials `there`. */
  get address(): string {
    return this.addresses.there;
  }

  /** A machine whose daemon has been killed is started again. */
  startAgain(side: 'here' | 'there'): Promise<void> {
    const { args = [] } = this.options;
    const [own, other] = side === 'here' ? [this.here, this.there] : [this.there, this.here];
    return own.start('--advertise', this.addresses[side], '--peer', other.fingerprint, ...args);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.here[Symbol.asyncDispose](), this.there[Symbol.asyncDispose]()]);
    await this.middle[Symbol.asyncDispose]();
  }

  private async start(): Promise<void> {
    const { here, there, middle } = this;
    const { fromHere, fromThere } = this.options.middle ?? { fromHere: '127.0.0.1', fromThere: '127.0.0.1' };
    this.addresses = {
      here: `${fromThere}:${await middle.inFrontOf(() => here.address, fromThere)}`,
      there: `${fromHere}:${await middle.inFrontOf(() => there.address, fromHere)}`,
    };
    await Promise.all([this.startAgain('here'), this.startAgain('there')]);
  }
}

/** A machine that listens everywhere in its namespace, and to which the test has a link of its own. */
export const machineIn = (rig: NetworkRig, namespace: NetworkNamespace): MachineOptions => {
  const control = rig.link(null, namespace);
  return { enter: namespace.enter, listen: `0.0.0.0:${PORT}`, dial: `${control.far}:${PORT}` };
};

/** In namespaces: whoever is in the middle has a link to each machine, and the test has another one to each. */
export const startCrossingIn = async (
  rig: NetworkRig,
): Promise<{ readonly crossing: Crossing; readonly links: readonly Link[] }> => {
  const [one, other] = [rig.namespace(), rig.namespace()];
  const links = { here: rig.link(null, one), there: rig.link(null, other) };
  const crossing = await Crossing.start({
    here: machineIn(rig, one),
    there: machineIn(rig, other),
    middle: { fromHere: links.here.near, fromThere: links.there.near },
  });
  return { crossing, links: [links.here, links.there] };
};
