import { describe, expect, it } from 'vitest';
import { Link } from '../../../server/migration/link.js';
import type { Message } from '../../../server/migration/message.js';

const pages = (data: Uint8Array): Message => ({ kind: 'pages', batch: { form: 'clear', gfns: [7], headers: data, data } });

describe('messages that come before their predecessors', () => {
  it('are kept as they were, whatever becomes of the memory that they came in', () => {
    const link = new Link({ session: 'session', boot: 'boot', ledger: null }, () => {});
    const memory = new Uint8Array(4096).fill(1);
    expect(link.accept(2, pages(memory))).toEqual([]);
    memory.fill(2);
    expect(link.accept(1, pages(memory))).toEqual([pages(memory), pages(new Uint8Array(4096).fill(1))]);
  });
});
