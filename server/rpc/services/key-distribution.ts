import { KeyDistributionService } from '../../../gen/services.js';
import type { AmdPlatform } from '../../hardware/amd/platform.js';
import { Failure } from '../../kernel/failure.js';
import { type Host, refused, reply, type UnaryMethod } from '../call.js';
import { type Route, unary } from '../route.js';

const NO_AMD_CHIP = new Failure('ENODEV', 'NO_AMD_CHIP', 'simkvmd', { allowed: 'a host with --vendor amd' });

/** What AMD's service would answer about this host's chip. */
const asks = <Req, Res>(answer: (amd: AmdPlatform, request: Req) => Res): UnaryMethod<Req, Res> => ({
  role: 'anyone',
  mutates: false,
  syscall: 'kds',
  handle: (_current, { kernel: { amd } }: Host, request) => (amd === null ? refused(NO_AMD_CHIP) : reply(answer(amd, request))),
});

/** AMD's key distribution service for the simulated root. */
export const keyDistributionRoutes: readonly Route[] = [
  unary(
    KeyDistributionService.getAuthorities,
    asks(({ keyDistribution }) => {
      const { ark, ask } = keyDistribution.x509Chain();
      return { ark_der: ark, ask_der: ask, amd_certs: keyDistribution.bundle() };
    }),
  ),
  unary(
    KeyDistributionService.getCek,
    asks(({ processor }) => ({ cek: processor.endorsedCek() })),
  ),
  unary(
    KeyDistributionService.getVcek,
    asks(({ processor }) => ({ vcek_der: processor.vcekCertificate() })),
  ),
  unary(
    KeyDistributionService.orderVlek,
    asks(({ processor }, { csp_id }) => {
      const { wrapped, certificate } = processor.orderVlek(csp_id ?? '');
      return { wrapped, vlek_der: certificate };
    }),
  ),
];
