import { describe, expect, it } from 'vitest';
import { KmemOwner } from '../../../server/kernel/kmem.js';

const columns = ({ chargedByType, reachableByType, chargedBytes, reachableBytes }: KmemOwner) => ({
  charged: Object.fromEntries(chargedByType),
  reachable: Object.fromEntries(reachableByType),
  bytes: [chargedBytes, reachableBytes],
});

describe('kernel memory accounting', () => {
  it('counts by type, and forgets a type of which nothing is left', () => {
    const vm = new KmemOwner('vm 1');
    const run = vm.charge('kvm_run', 4096);
    vm.charge('kvm', 8192);
    expect(columns(vm)).toMatchObject({ charged: { kvm_run: 4096, kvm: 8192 }, bytes: [12_288, 12_288] });
    run.release();
    expect(columns(vm)).toEqual({ charged: { kvm: 8192 }, reachable: { kvm: 8192 }, bytes: [8192, 8192] });
  });

  it('lets what has moved be reached from its new place, at the cost of who made it', () => {
    const [source, destination] = [new KmemOwner('vm 1'), new KmemOwner('vm 2')];
    const area = source.charge('vmsa', 4096);
    destination.charge('vmsa', 4096);
    area.moveTo(destination);
    expect(columns(source)).toEqual({ charged: { vmsa: 4096 }, reachable: {}, bytes: [4096, 0] });
    expect(columns(destination)).toEqual({ charged: { vmsa: 4096 }, reachable: { vmsa: 8192 }, bytes: [4096, 8192] });
    area.resize(100);
    expect([source.chargedBytes, source.reachableBytes, destination.reachableBytes]).toEqual([100, 0, 4196]);
    area.release();
    expect([columns(source).bytes, columns(destination).bytes]).toEqual([
      [0, 0],
      [4096, 4096],
    ]);
  });

  it('follows what moves on, and what comes home', () => {
    const [a, b, c] = [new KmemOwner('vm 1'), new KmemOwner('vm 2'), new KmemOwner('vm 3')];
    const region = a.charge('enc_region', 48);
    for (const holder of [b, c]) region.moveTo(holder);
    expect([a, b, c].map(({ chargedBytes, reachableBytes }) => [chargedBytes, reachableBytes])).toEqual([
      [48, 0],
      [0, 0],
      [0, 48],
    ]);
    region.moveTo(a);
    expect([a, b, c].map(({ reachableByType }) => [...reachableByType])).toEqual([[['enc_region', 48]], [], []]);
  });

  it('takes nothing back twice', () => {
    const charge = new KmemOwner('vm 1').charge('kvm', 8192);
    charge.release();
    expect(() => charge.release()).toThrow('released twice');
  });
});
