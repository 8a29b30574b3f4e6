import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Errno, KvmCap, KvmX86Group, KvmX86SevAttribute, KvmX86VmType, SevRetCode } from '../../client/index.js';
import { freeAll, SEV, SEV_ES, type Setup, SNP, setUp } from './sev-machine.js';

/** The assertions of the kernel's selftest sev_init2_tests, over the wire. */
const DEBUG_SWAP = 1n << 5n;
const CPUID_SEV = 0x8000_001f;

describe('KVM_SEV_INIT2', () => {
  let setup: Setup;
  let supported = 0n;
  beforeAll(async () => {
    setup = await setUp('--snp');
    const { addr_bytes } = await setup.kvm.getDeviceAttr({
      group: KvmX86Group.KVM_X86_GRP_SEV,
      attr: KvmX86SevAttribute.KVM_X86_SEV_VMSA_FEATURES,
    });
    supported = Buffer.from(addr_bytes).readBigUInt64LE();
  });
  afterAll(async () => {
    await freeAll(setup);
    await setup[Symbol.asyncDispose]();
  });

  const init2 = async (type: number, init: { vmsa_features?: bigint; flags?: number }): Promise<Errno | null> => {
    await using vm = await setup.kvm.createVm(type);
    const outcome = await vm.sev.try.init2(init);
    if (outcome.errno === null) expect((await vm.inspect()).encryption_context).not.toBeNull();
    return outcome.errno;
  };

  it('is for the types that CPUID and KVM_CAP_VM_TYPES both name', async () => {
    const types = await setup.kvm.checkExtension(KvmCap.KVM_CAP_VM_TYPES);
    const { entries } = await setup.kvm.getSupportedCpuid();
    const eax = entries.find((entry) => entry.function === CPUID_SEV)?.eax ?? 0;
    for (const [type, bit] of [
      [KvmX86VmType.KVM_X86_SEV_VM, 1],
      [KvmX86VmType.KVM_X86_SEV_ES_VM, 3],
      [KvmX86VmType.KVM_X86_SNP_VM, 4],
    ] as const)
      expect((types >> type) & 1, KvmX86VmType[type]).toBe((eax >> bit) & 1);
  });

  it.each([SEV, SEV_ES, SNP])('initialises a VM of type $name', async ({ type }) => {
    expect(await init2(type, {})).toBeNull();
  });

  it('EINVAL for VMs of other types', async () => {
    expect(await init2(KvmX86VmType.KVM_X86_DEFAULT_VM, {})).toBe('EINVAL');
    expect(await init2(KvmX86VmType.KVM_X86_SW_PROTECTED_VM, {})).toBe('EINVAL');
  });

  it.each([SEV, SEV_ES, SNP])('EINVAL for every flag: $name', async ({ type }) => {
    for (let bit = 0; bit < 32; bit++) expect(await init2(type, { flags: (1 << bit) >>> 0 }), `flag ${bit}`).toBe('EINVAL');
  });

  it.each([SEV, SEV_ES, SNP])('EINVAL for every feature of save areas that is not supported: $name', async ({ type, es }) => {
    for (let bit = 0n; bit < 64n; bit++) {
      const expected = es && (supported & (1n << bit)) !== 0n ? null : 'EINVAL';
      expect(await init2(type, { vmsa_features: 1n << bit }), `feature ${bit}`).toBe(expected);
    }
  });

  it('takes DEBUG_SWAP where it is supported', async () => {
    expect(supported & DEBUG_SWAP).toBe(DEBUG_SWAP);
    for (const { type } of [SEV_ES, SNP]) expect(await init2(type, { vmsa_features: DEBUG_SWAP })).toBeNull();
  });

  it('leaves the firmware’s status at success', async () => {
    await using vm = await setup.kvm.createVm(SEV.type);
    const { error } = await vm.memoryEncryptOp({ id: 22, data_bytes: new Uint8Array(48) });
    expect(error).toBe(SevRetCode.SEV_RET_SUCCESS);
  });
});
