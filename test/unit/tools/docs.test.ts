import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { IOCTLS } from '../../../server/kernel/uapi/ioctls.js';
import { PAGES } from '../../../tools/docs/pages.js';

const page = (file: string): string => PAGES[file]?.() ?? '';

describe('the generated pages', () => {
  it.each(Object.keys(PAGES))('docs/%s is what `npm run docs` makes of the code', (file) => {
    expect(readFileSync(`docs/${file}`, 'utf8')).toBe(page(file));
  });

  it('have every ioctl, with its request number', () => {
    const text = page('kvm-api.md');
    for (const [name, { request }] of IOCTLS) expect(text).toContain(`| ${name} | 0x${request.toString(16)} |`);
  });

  it('say what is refused as by a kernel built without it', () => {
    const text = page('kvm-api.md');
    const refused = text.split('\n').filter((line) => line.endsWith('| left out: ENOTTY |'));
    expect(refused.map((line) => line.split(' ')[1])).toContain('KVM_XEN_HVM_SET_ATTR');
    expect(refused.map((line) => line.split(' ')[1])).not.toContain('KVM_IRQFD');
  });
});
