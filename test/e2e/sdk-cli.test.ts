import { execFile } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startWorld, type Vm, type World } from '../../client/index.js';

const PROGRAM = 'dist/client/cli/main.js';

let world: World;
let vm: Vm;

beforeAll(async () => {
  world = await startWorld();
  vm = await (await world.process.openKvm()).createVm();
  const ram = await world.process.memory.mmap({ length: 0x4000 });
  await vm.setUserMemoryRegion({ slot: 3, guest_phys_addr: 0x10_0000, memory_size: 0x4000, userspace_addr: ram });
});

afterAll(() => world[Symbol.asyncDispose]());

interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the program as a person would. */
const simkvm = (...args: string[]): Promise<Ended> =>
  new Promise((resolve) => {
    const child = execFile(process.execPath, [PROGRAM, ...args], (_error, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });

describe('simkvm', () => {
  it('host shows what the host is', async () => {
    const { code, stdout } = await simkvm('host', '--target', world.daemon.target);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^policy +VM_DEAD$/m);
    expect(stdout).toMatch(/^VMs +1$/m);
  });

  it('vms lists the VMs, also as JSON, with the options before the command or after it', async () => {
    const { vm_id } = await vm.inspect();
    expect((await simkvm('vms', '--target', world.daemon.target)).stdout).toMatch(
      new RegExp(`^ *${vm_id} .* DEFAULT +alive`, 'm'),
    );
    const { stdout } = await simkvm('--json', '--target', world.daemon.target, 'vms');
    expect(JSON.parse(stdout)).toMatchObject([{ vm_id, memslots: 1, file_open: true }]);
  });

  it('vm show shows a VM', async () => {
    const { vm_id } = await vm.inspect();
    const { stdout } = await simkvm('vm', 'show', String(vm_id), '--target', world.daemon.target);
    expect(stdout).toMatch(/^ *3 +0x100000 +16.0 KiB/m);
  });

  it('says what is wrong, and ends with 1', async () => {
    const { code, stdout, stderr } = await simkvm('vm', 'show', '4711', '--target', world.daemon.target);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain('NO_SUCH_VM');
    expect(stderr).toContain('simkvm vms');
  });
});
