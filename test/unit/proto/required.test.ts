import { describe, expect, test } from 'vitest';
import { missingField } from '../../../gen/required.js';
import { FileService, HostService, KvmVcpu, KvmVm, type RpcMethod, SERVICES, SyscallService } from '../../../gen/services.js';
import { isOptional, isRequired, loadContract, requiredOneofs } from '../../../tools/codegen/contract.js';

/** What the check says of a request as it arrives. */
const missing = <Req extends object, ReqInit, Res, ResInit>(method: RpcMethod<Req, ReqInit, Res, ResInit>, request: ReqInit) =>
  missingField(method.path, method.requestDeserialize(method.requestSerialize(request)));

describe('the check for required fields', () => {
  const region = { slot: 0, guest_phys_addr: 0n, memory_size: 0n, userspace_addr: 0n };

  test('an empty message does not delete slot 0', () => {
    expect(missing(KvmVm.setUserMemoryRegion, {})).toBe('fd');
    expect(missing(KvmVm.setUserMemoryRegion, { fd: 4 })).toBe('region');
    expect(missing(KvmVm.setUserMemoryRegion, { fd: 4, region: {} })).toBe('region.slot');
    expect(missing(KvmVm.setUserMemoryRegion, { fd: 4, region: { ...region, memory_size: null } })).toBe('region.memory_size');
  });

  test('a zero that is given is given', () => {
    expect(missing(KvmVm.setUserMemoryRegion, { fd: 0, region })).toBeNull();
  });

  test('what is marked OPTIONAL may be left out', () => {
    expect(missing(KvmVm.setUserMemoryRegion2, { fd: 4, region })).toBeNull();
    expect(missing(KvmVm.irqfd, { fd: 4, irqfd: { fd: 5, gsi: 0 } })).toBeNull();
    expect(missing(KvmVcpu.run, { fd: 5 })).toBeNull();
    expect(missing(SyscallService.ioctl, { fd: 3, request: 0 })).toBeNull();
  });

  test('one of a oneof must be given', () => {
    expect(missing(FileService.write, { fd: 3 })).toBe('data');
    expect(missing(FileService.write, { fd: 3, utf8: '' })).toBeNull();
    expect(missing(HostService.getVm, {})).toBe('vm');
  });

  test('items of a list are looked into', () => {
    expect(missing(KvmVcpu.setMsrs, { fd: 5, msrs: { entries: [{ index: 0 }, {}] } })).toBe('msrs.entries[1].index');
    expect(missing(KvmVcpu.setSregs, { fd: 5, sregs: {} })).toBe('sregs.cs');
  });

  test('every RPC with such a field misses it in an empty request', () => {
    for (const { name, methodsArray, fullName } of loadContract().services)
      for (const method of methodsArray) {
        const request = method.resolvedRequestType;
        if (request === null) throw new Error(`${name}.${method.name} is not resolved`);
        const first = request.fieldsArray.find(isRequired)?.name ?? requiredOneofs(request)[0]?.name ?? null;
        const methods: Readonly<Record<string, RpcMethod<object, object, object, object>>> = Object.fromEntries(
          Object.values(SERVICES).flatMap((service) => Object.values(service).map((rpc) => [rpc.path, rpc])),
        );
        const path = `/${fullName.slice(1)}/${method.name}`;
        const decoded = methods[path]?.requestDeserialize(Buffer.alloc(0));
        expect(decoded && missingField(path, decoded), path).toBe(first);
      }
  });
});

describe('the contract', () => {
  const { messages, services } = loadContract();

  test('every descriptor in a request is optional, so that a missing one is not descriptor 0', () => {
    const fields = messages.filter((message) => !message.name.endsWith('Response')).flatMap((message) => message.fieldsArray);
    const descriptors = fields.filter(
      ({ name, comment }) => /^(\w+_)?fd$|^guest_memfd$|^resamplefd$/.test(name) && !/^Out:/.test(comment ?? ''),
    );
    const inRequests = descriptors.filter(({ parent }) => /Request$|^Kvm(?!Create)/.test(parent?.name ?? ''));
    expect(inRequests.length).toBeGreaterThan(100);
    expect(
      inRequests
        .filter((field) => field.type === 'int32' && !isOptional(field) && field.partOf === null)
        .map((field) => field.fullName),
    ).toEqual([]);
  });

  test('every RPC of a system call answers ret', () => {
    const calls = services.filter(({ name }) => !['HostService', 'KeyDistributionService', 'MigrationService'].includes(name));
    const silent = calls
      .flatMap((service) => service.methodsArray)
      .filter((method) => method.responseStream !== true && method.resolvedResponseType?.fields.ret?.type !== 'int64');
    expect(silent.map((method) => method.fullName)).toEqual([]);
  });

  test('a pointer that may come inline has its bytes beside it', () => {
    const structs = messages.filter(({ name }) => /^Kvm/.test(name) && !/Request$|Response$|^KvmExit/.test(name));
    const inline = structs.flatMap(({ name, fields }) =>
      Object.keys(fields)
        .filter((field) => field.endsWith('_bytes'))
        .map((field) => ({ at: `${name}.${field}`, pointer: fields[field.replace(/_bytes$/, '')]?.type })),
    );
    expect(inline.length).toBeGreaterThan(20);
    expect(inline.filter(({ pointer }) => pointer !== 'uint64')).toEqual([]);
  });
});
