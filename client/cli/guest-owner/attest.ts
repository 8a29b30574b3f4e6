import type { Command } from 'commander';
import type { Root } from '../../guest-owner/amd-roots.js';
import { parseReport } from '../../guest-owner/attestation-report.js';
import { type Measured, verifyMeasurement } from '../../guest-owner/measurement.js';
import {
  type ExpectedSevReport,
  judgeSevReport,
  parsePek,
  parseSevReport,
  type SevReportVerdict,
} from '../../guest-owner/sev-attestation-report.js';
import {
  type PlatformCertificates,
  type PlatformVerdict,
  parseAmdBundle,
  parsePlatformChain,
  parseSevCertificate,
  verifyPlatform,
} from '../../guest-owner/sev-certificate.js';
import type { Check, Verdict } from '../../guest-owner/verdict.js';
import type { Expected, ReportVerdict } from '../../guest-owner/verify-report.js';
import { fields } from '../output.js';
import type { Console, GlobalOptions } from '../session.js';
import {
  bigintArgument,
  byteArgument,
  fileArgument,
  hexArgument,
  type NamedFile,
  namedFileArgument,
  namedFileArguments,
  numberArgument,
  reading,
  vmplArgument,
} from './files.js';
import { runLocal } from './local-command.js';

const line = ({ name, ok, detail }: Check): string =>
  `${ok ? 'ok    ' : 'FAILED'}  ${name}${detail === undefined ? '' : ` (${detail})`}`;

const conclusion = (ok: boolean, subject: string): string => (ok ? `${subject} verifies` : `${subject} does NOT verify`);

const renderVerdict =
  (subject: string) =>
  (verdict: Verdict): string =>
    [...verdict.checks.map(line), conclusion(verdict.ok, subject)].join('\n');

const rootText = (root: Root | null): string => {
  if (root === null) return 'none';
  return root.amdProduct === null ? `NOT one of AMD's, key ${root.fingerprint}` : `AMD's of ${root.amdProduct}`;
};

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const renderReport = (verdict: ReportVerdict): string => {
  const { report } = verdict;
  const said = fields([
    ['version', report.version],
    ['policy', `0x${report.policy.toString(16)}`],
    ['VMPL', report.vmpl],
    ['measurement', hex(report.measurement)],
    ['report data', hex(report.reportData)],
    ['host data', hex(report.hostData)],
    ['reported TCB', hex(report.reportedTcb)],
    ['chip', hex(report.chipId)],
    ['signed by', report.signingKey],
    ['root', rootText(verdict.root)],
  ]);
  return `${said}\n\n${renderVerdict('the report')(verdict)}`;
};

const renderSevReport = (verdict: SevReportVerdict): string => {
  const { mnonce, digest, policy } = verdict.report;
  const said = fields([
    ['nonce', hex(mnonce)],
    ['launch digest', hex(digest)],
    ['policy', `0x${policy.toString(16)}`],
  ]);
  return `${said}\n\n${renderVerdict('the report')(verdict)}`;
};

const renderPlatform = (verdict: PlatformVerdict): string =>
  `${fields([['root', rootText(verdict.root)]])}\n\n${renderVerdict('the platform')(verdict)}`;

interface VerifyOptions extends GlobalOptions, Expected {
  readonly chain: readonly NamedFile[];
  readonly root?: NamedFile;
}

interface MeasurementOptions extends GlobalOptions, Measured {
  readonly tik: Uint8Array;
}

interface SevReportOptions extends GlobalOptions, ExpectedSevReport {
  readonly mnonce: Uint8Array;
  readonly pek: NamedFile;
}

interface PlatformOptions extends GlobalOptions {
  readonly pdh: NamedFile;
  readonly certs: NamedFile;
  readonly cek?: NamedFile;
  readonly amd: NamedFile;
}

/** Every file is read by itself before, so that a wrong one is named. */
const platformCertificates = ({ pdh, certs, cek, amd }: PlatformOptions): PlatformCertificates => {
  reading(pdh, (bytes) => parseSevCertificate(bytes, 'PDH'));
  reading(certs, parsePlatformChain);
  if (cek !== undefined) reading(cek, (bytes) => parseSevCertificate(bytes, 'CEK'));
  reading(amd, parseAmdBundle);
  return { pdh: pdh.bytes, chain: certs.bytes, amd: amd.bytes, ...(cek && { cek: cek.bytes }) };
};

/** `simkvm attest`: what a guest's owner verifies. */
export const registerAttest = (program: Command, console: Console): void => {
  const attest = program.command('attest').description('verify what a platform says of a guest and of itself, with files alone');
  attest
    .command('verify')
    .description('verify a SEV-SNP attestation report: signature, chain, and what is expected of it')
    .argument('<report>', 'the report, 1184 bytes', namedFileArgument)
    .requiredOption(
      '--chain <file>',
      'certificates of VCEK or VLEK, ASK and ARK, PEM or DER; may be repeated',
      namedFileArguments,
    )
    .option('--root <file>', 'the root certificate that is trusted', namedFileArgument)
    .option('--measurement <hex>', 'expected launch digest', hexArgument)
    .option('--report-data <hex>', 'expected report data; zeros follow', hexArgument)
    .option('--host-data <hex>', 'expected host data; zeros follow', hexArgument)
    .option('--policy <number>', 'expected guest policy', bigintArgument)
    .option('--policy-forbids <bits>', 'bits of the guest policy that must be 0', bigintArgument)
    .option('--vmpl <number>', 'expected VMPL', vmplArgument)
    .action((report: NamedFile, _options, command: Command) => {
      const { chain, root, ...options } = command.optsWithGlobals<VerifyOptions>();
      const expected: Expected = options;
      return runLocal(
        options,
        console,
        async () => {
          const { readCertificate, readCertificates } = await import('../../guest-owner/report-key.js');
          const { verifyReport } = await import('../../guest-owner/verify-report.js');
          // Every file is read by itself before, so that a wrong one is named.
          reading(report, parseReport);
          for (const file of chain) reading(file, readCertificates);
          if (root !== undefined) reading(root, readCertificate);
          const files = chain.map(({ bytes }) => bytes);
          const value = verifyReport(report.bytes, { chain: files, trustedRoot: root?.bytes, expected });
          return { value, ok: value.ok };
        },
        renderReport,
      );
    });
  attest
    .command('measurement')
    .description('verify the launch measurement of a SEV or SEV-ES guest')
    .argument('<measurement>', 'what KVM_SEV_LAUNCH_MEASURE gave, 48 bytes', fileArgument)
    .requiredOption('--tik <file>', "the session's integrity key, 16 bytes", fileArgument)
    .requiredOption('--digest <hex>', 'expected launch digest', hexArgument)
    .requiredOption('--policy <number>', 'guest policy', numberArgument)
    .requiredOption('--api-major <number>', "version of the platform's firmware", byteArgument)
    .requiredOption('--api-minor <number>', "version of the platform's firmware", byteArgument)
    .requiredOption('--build <number>', "build of the platform's firmware", byteArgument)
    .action((measurement: Uint8Array, _options, command: Command) => {
      const { tik, ...options } = command.optsWithGlobals<MeasurementOptions>();
      const measured: Measured = options;
      return runLocal(
        options,
        console,
        () => {
          const ok = verifyMeasurement(measurement, tik, measured);
          return { value: { ok }, ok };
        },
        ({ ok }) => conclusion(ok, 'the measurement'),
      );
    });
  attest
    .command('sev-report')
    .description('verify an attestation report on a SEV or SEV-ES guest')
    .argument('<report>', 'what KVM_SEV_GET_ATTESTATION_REPORT gave, 208 bytes', namedFileArgument)
    .requiredOption('--mnonce <hex>', 'the nonce that the report was asked for with, 16 bytes', hexArgument)
    .requiredOption(
      '--pek <file>',
      'the PEK certificate, or the chain that begins with it and `attest platform` verifies',
      namedFileArgument,
    )
    .option('--digest <hex>', 'expected launch digest', hexArgument)
    .option('--policy <number>', 'expected guest policy', numberArgument)
    .action((report: NamedFile, _options, command: Command) => {
      const { mnonce, pek, ...options } = command.optsWithGlobals<SevReportOptions>();
      const expected: ExpectedSevReport = options;
      return runLocal(
        options,
        console,
        () => {
          reading(report, parseSevReport);
          reading(pek, parsePek);
          const value = judgeSevReport(report.bytes, mnonce, pek.bytes, expected);
          return { value, ok: value.ok };
        },
        renderSevReport,
      );
    });
  attest
    .command('platform')
    .description("verify that a platform's PDH belongs to a genuine chip")
    .requiredOption('--pdh <file>', 'the PDH certificate', namedFileArgument)
    .requiredOption('--certs <file>', 'PEK, OCA and CEK, one after the other', namedFileArgument)
    .option('--cek <file>', "the CEK certificate with the ASK's signature, if the chain has it without", namedFileArgument)
    .requiredOption('--amd <file>', 'ASK and ARK, one after the other', namedFileArgument)
    .action((_options, command: Command) => {
      const options = command.optsWithGlobals<PlatformOptions>();
      return runLocal(
        options,
        console,
        () => {
          const value = verifyPlatform(platformCertificates(options));
          return { value, ok: value.ok };
        },
        renderPlatform,
      );
    });
};
