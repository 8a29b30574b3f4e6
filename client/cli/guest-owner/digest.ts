import { type Command, InvalidArgumentError, Option } from 'commander';
import type { DirectBoot } from '../../guest-owner/kernel-hashes.js';
import { type LaunchImage, sevEsLaunchDigest, sevLaunchDigest } from '../../guest-owner/launch-digest.js';
import { snpLaunchDigest } from '../../guest-owner/snp-launch-digest.js';
import { CPU_SIGNATURE } from '../../guest-owner/vmsa.js';
import type { Console, GlobalOptions } from '../session.js';
import { bigintArgument, fileArgument, numberArgument } from './files.js';
import { runLocal } from './local-command.js';

interface ImageOptions extends GlobalOptions {
  readonly ovmf: Uint8Array;
  readonly kernel?: Uint8Array;
  readonly initrd?: Uint8Array;
  readonly append?: string;
}

interface VcpuOptions extends ImageOptions {
  readonly vcpus: number;
  readonly cpuSignature: number;
}

interface SnpOptions extends VcpuOptions {
  readonly sevFeatures: bigint;
}

const imageOf = ({ ovmf, kernel, initrd, append }: ImageOptions): LaunchImage => {
  if (kernel === undefined) {
    if (initrd !== undefined || append !== undefined) throw new RangeError('--initrd and --append need --kernel');
    return { firmware: ovmf };
  }
  const boot: DirectBoot = { kernel, ...(initrd && { initrd }), ...(append !== undefined && { cmdline: append }) };
  return { firmware: ovmf, boot };
};

const vcpusOf = ({ vcpus, cpuSignature }: VcpuOptions) => ({ count: vcpus, cpuSignature });

const CPU_MODELS = Object.keys(CPU_SIGNATURE).join(', ');

/** EAX of CPUID leaf 1, or the CPU model of QEMU's that has it; versions of a model, such as EPYC-v4, have the same. */
const cpuSignatureArgument = (text: string): number => {
  const model = Object.entries(CPU_SIGNATURE).find(([name]) => name === text.replace(/-v\d+$/, ''));
  if (model !== undefined) return model[1];
  if (/^\d/.test(text)) return numberArgument(text);
  throw new InvalidArgumentError(`'${text}' is no whole number from 0 to 0xffffffff, and none of ${CPU_MODELS}.`);
};

/** `simkvm digest`: the launch digest that a genuine launch of an image has. */
export const registerDigest = (program: Command, console: Console): void => {
  const digest = program.command('digest').description('compute the launch digest of an image as QEMU launches it');
  const kind = (name: string, description: string): Command =>
    digest
      .command(name)
      .description(description)
      .requiredOption('--ovmf <file>', 'the firmware', fileArgument)
      .option('--kernel <file>', 'kernel whose hash is measured', fileArgument)
      .option('--initrd <file>', 'initial RAM disk whose hash is measured', fileArgument)
      .option('--append <text>', 'command line whose hash is measured');
  const withVcpus = (command: Command): Command =>
    command
      .option('--vcpus <n>', 'number of vCPUs', numberArgument, 1)
      .addOption(
        new Option('--cpu-signature <eax>', `EAX of CPUID leaf 1, or a CPU model of QEMU's: ${CPU_MODELS}`)
          .argParser(cpuSignatureArgument)
          .default(CPU_SIGNATURE.EPYC, `0x${CPU_SIGNATURE.EPYC.toString(16)}, EPYC`),
      );
  const print = <Options extends ImageOptions>(compute: (options: Options) => Uint8Array) =>
    function action(_options: unknown, command: Command): Promise<void> {
      const options = command.optsWithGlobals<Options>();
      const hex = () => ({ value: { digest: Buffer.from(compute(options)).toString('hex') }, ok: true });
      return runLocal(options, console, hex, ({ digest: text }) => text);
    };
  kind('sev', 'of a SEV guest').action(print((options: ImageOptions) => sevLaunchDigest(imageOf(options))));
  withVcpus(kind('sev-es', 'of a SEV-ES guest')).action(
    print((options: VcpuOptions) => sevEsLaunchDigest(imageOf(options), vcpusOf(options))),
  );
  withVcpus(kind('snp', 'of a SEV-SNP guest'))
    .addOption(
      // Commander writes a default as JSON, which has no bigint.
      new Option('--sev-features <bits>', 'SEV_FEATURES of the save areas').argParser(bigintArgument).default(1n, '1'),
    )
    .action(
      print((options: SnpOptions) =>
        snpLaunchDigest(imageOf(options), { vcpus: vcpusOf(options), sevFeatures: options.sevFeatures }),
      ),
    );
};
