import { describe, expect, it } from 'vitest';
import { readDeferrals } from './deferred.js';
import { goldenFiles } from './golden-file.js';
import { createInProcessHost } from './in-process-host.js';
import { describeDifference, replay } from './replay.js';

const files = goldenFiles();
const deferrals = readDeferrals(files);
const memslots = files.filter(({ name }) => /^(fuzz\/)?memslot\//.test(name) && !deferrals.has(name));

/** The recordings once more, by a process whose memory is in step with the kernel's only where its calls begin and end. */
describe('memslots of a process outside', () => {
  it.each(memslots.map((file) => [file.name, file] as const))('%s', async (_name, file) => {
    const host = await createInProcessHost(true);
    const difference = await replay(host.executor, file);
    if (difference !== null) expect.fail(describeDifference(file, difference));
    expect(await host.finish(), 'left behind by a process that has ended').toEqual([]);
  });

  it('hold what it has stored from its next call on, and no earlier', async () => {
    const host = await createInProcessHost(true);
    const outcome = async (op: string, fields: Record<string, string | number> = {}) => host.executor.execute({ op, ...fields });
    await outcome('open', { as: 'sys' });
    await outcome('create_vm', { sys: 'sys', type: 0, as: 'vm' });
    await outcome('mmap', { as: 'm', size: 0x10000 });
    await host.executor.execute({ op: 'set_user_memory_region', vm: 'vm', gpa: 0, size: 0x10000, backing: { map: 'm' } });
    await outcome('create_vcpu', { vm: 'vm', id: 0, as: 'c' });
    await host.executor.execute({ op: 'set_sregs', vcpu: 'c', set: { 'cs.base': 0, 'cs.selector': 0 } });
    await host.executor.execute({ op: 'set_regs', vcpu: 'c', set: { rip: 0x1000, rflags: 2 } });
    // inc byte ptr [0x2000]; cmp byte ptr [0x3000], 0; je back to it; hlt
    await outcome('write_mem', { map: 'm', off: 0x1000, data: 'fe060020803e00300074f5f4' });
    await host.executor.execute({ op: 'spawn', as: 't', settle_ms: 10, ops: [{ op: 'run', vcpu: 'c' }] });
    const before = await outcome('read_mem', { map: 'm', off: 0x2000, len: 1 });
    await outcome('write_mem', { map: 'm', off: 0x3000, data: '01' });
    await outcome('sleep', { ms: 50 });
    expect(await outcome('read_mem', { map: 'm', off: 0x2000, len: 1 })).toEqual(before);
    await outcome('check_extension', { fd: 'vm', cap: 10 });
    expect(await outcome('join', { thread: 't' })).toMatchObject({ results: [{ ret: 0, exit: 'HLT' }] });
    await host.finish();
  });
});
