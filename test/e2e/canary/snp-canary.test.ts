import { describe, expect, it } from 'vitest';
import { KvmX86VmType, type Process, type Vcpu, type Vm } from '../../../client/index.js';
import { GHCB_MSR } from '../../../server/hardware/amd/ghcb.js';
import { checksum, derive, derived, GHCB_MSR_INDEX, remember, SUM_TO_EDX, u32, vmgexit } from './canary-guest.js';
import { NOTHING, observedHost, type Secret, seek } from './observed-host.js';
import { AP_RESET_HOLD, askWrongly, launchedGuest, MEMORY_BYTES, PAGE, REGISTER_GHCB, VMPCK0, VMPCKS } from './snp-guest.js';

/*
 * A SEV-SNP guest derives its blocks from the first of the keys that the firmware has put into its secrets page. Then it uses all
 * four of these keys once, in messages that the firmware refuses, so that the test learns them; and it says the sum of the blocks.
 */
const CODE = Uint8Array.from([
  ...[...derive(VMPCK0), ...remember(VMPCK0), ...vmgexit(AP_RESET_HOLD)],
  ...REGISTER_GHCB,
  ...VMPCKS.flatMap(askWrongly),
  ...SUM_TO_EDX,
  ...[0xb9, ...u32(GHCB_MSR_INDEX), 0xb8, ...u32(GHCB_MSR.TERMINATE), 0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9], // wrmsr; vmgexit
]);

/** Whatever the host may ask about a vCPU. */
const readRegisters = async (vcpu: Vcpu): Promise<void> => {
  await vcpu.try.getRegs();
  await vcpu.try.getSregs();
  await vcpu.try.getFpu();
};

const refused = async ({ process, vm, uaddr }: { process: Process; vm: Vm; uaddr: bigint }): Promise<(string | null)[]> => {
  const plain = await process.memory.mmap({ length: PAGE });
  const dbg = { src_uaddr: uaddr, dst_uaddr: plain, len: PAGE };
  return [
    (await vm.sev.try.dbgDecrypt(dbg)).errno,
    (await vm.sev.try.dbgEncrypt({ ...dbg, src_uaddr: plain, dst_uaddr: uaddr })).errno,
  ];
};

describe('what a SEV-SNP guest derives from its first message key, and every key', () => {
  it('is seen nowhere outside: not after launch, run, debugging, a move that is refused, and guest requests', async () => {
    await using host = await observedHost('--snp');
    // The keys that sign reports are made when somebody asks for their certificate.
    await host.simkvm.keyDistribution.getVcek();
    const guest = await launchedGuest(host.simkvm, CODE);
    const { process, kvm, vm, vcpu, uaddr } = guest;
    const launch = await host.look();

    expect((await vcpu.run()).reason).toBe('KVM_EXIT_AP_RESET_HOLD');
    await process.memory.read(uaddr, MEMORY_BYTES);
    await readRegisters(vcpu);
    const run = await host.look();

    expect(await refused(guest)).toEqual(['EPERM', 'EPERM']);
    const destination = await kvm.createVm(KvmX86VmType.KVM_X86_SNP_VM);
    expect((await destination.try.moveEncContextFrom(vm)).errno).toBe('EINVAL');
    const debugAndMove = await host.look();

    const before = host.keys().length;
    const exit = await vcpu.run();
    if (exit.reason !== 'KVM_EXIT_SYSTEM_EVENT') throw new Error(exit.reason);
    await process.memory.read(uaddr, MEMORY_BYTES);
    await readRegisters(vcpu);
    const requests = await host.look();

    const keys = host.keys();
    const vmpcks = keys.slice(before).filter(({ what }) => what === 'aes-256-gcm');
    expect(vmpcks.length).toBe(VMPCKS.length);
    const blocks = derived(vmpcks[0]?.bytes ?? new Uint8Array(0));
    // The guest has derived these blocks and no others.
    const [said] = exit.system_event.data;
    expect(said).toBe((BigInt(checksum(blocks)) << 32n) | BigInt(GHCB_MSR.TERMINATE));

    const secrets: Secret[] = [...blocks.map((bytes, index) => ({ what: `block ${index}`, bytes })), ...keys];
    for (const use of ['aes-128-ecb', 'hmac-sha256', 'secp384r1']) expect(keys.map(({ what }) => what)).toContain(use);
    for (const [when, sight] of Object.entries({ launch, run, debugAndMove, requests }))
      expect(seek(secrets, sight), when).toEqual(NOTHING);
  });
});
