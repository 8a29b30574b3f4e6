import { execFileSync } from 'node:child_process';
import { threadId } from 'node:worker_threads';

/** Two files of tests run at once, in threads of one process. */
const OWN = `${process.pid.toString(36)}-${threadId.toString(36)}`;
/** Of RFC 2544: for tests of networks, and in nobody's use. A file of tests takes one /24 of it. */
const NETWORK = `198.18.${(process.pid + threadId) % 256}`;

const ip = (...args: readonly string[]): void => {
  execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] });
};

/** A pair of interfaces, one at each end, with an address each; what is sent into one comes out of the other. */
export interface Link {
  /** Addresses of the ends. */
  readonly near: string;
  readonly far: string;
  /** Nothing passes any more, and nobody is told. */
  cut(): void;
  heal(): void;
  /**
   * What is sent from either end is delayed, and some of it is lost.
   * @param what as tc-netem(8) has it: `delay 20ms loss 2%`
   */
  disturb(what: string): void;
}

/** A namespace of its own: a machine's network. */
export interface NetworkNamespace {
  readonly name: string;
  /** What starts a program there. */
  readonly enter: readonly string[];
}

/** Networks that a test makes of namespaces and links; disposing of it takes all of them away. */
export class NetworkRig implements Disposable {
  private readonly namespaces: NetworkNamespace[] = [];
  private readonly links: string[] = [];

  /** Makes a machine's network, with nothing but a loopback interface. */
  namespace(): NetworkNamespace {
    const name = `simkvm-${OWN}-${this.namespaces.length}`;
    ip('netns', 'add', name);
    const made = { name, enter: ['ip', 'netns', 'exec', name] };
    this.namespaces.push(made);
    ip('-n', name, 'link', 'set', 'lo', 'up');
    return made;
  }

  /** Links two machines' networks, or one and that of the test. */
  link(near: NetworkNamespace | null, far: NetworkNamespace): Link {
    const index = this.links.length;
    const [here, there] = [`sk${OWN}n${index}`, `sk${OWN}f${index}`];
    ip('link', 'add', here, 'type', 'veth', 'peer', 'name', there);
    this.links.push(here);
    const ends = [
      { name: here, namespace: near, address: `${NETWORK}.${4 * index + 1}` },
      { name: there, namespace: far, address: `${NETWORK}.${4 * index + 2}` },
    ] as const;
    const inside = (namespace: NetworkNamespace | null): string[] => (namespace === null ? [] : ['-n', namespace.name]);
    for (const { name, namespace, address } of ends) {
      if (namespace !== null) ip('link', 'set', name, 'netns', namespace.name);
      ip(...inside(namespace), 'address', 'add', `${address}/30`, 'dev', name);
      ip(...inside(namespace), 'link', 'set', name, 'up');
    }
    const set = (state: 'up' | 'down'): void => ip(...inside(near), 'link', 'set', here, state);
    return {
      near: ends[0].address,
      far: ends[1].address,
      cut: () => set('down'),
      heal: () => set('up'),
      disturb: (what) => {
        for (const { name, namespace } of ends)
          execFileSync('tc', [...inside(namespace), 'qdisc', 'replace', 'dev', name, 'root', 'netem', ...what.split(' ')]);
      },
    };
  }

  /** A namespace takes its interfaces with it, and they their other ends. */
  [Symbol.dispose](): void {
    for (const { name } of this.namespaces) ip('netns', 'delete', name);
  }
}
