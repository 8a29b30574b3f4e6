import type { GuestKindName } from './guest.js';
import type { GuestKind } from './guest-kind.js';
import { plainKind } from './plain.js';
import { sevKind } from './sev.js';

/** Every kind of guest that can be moved. */
export const KINDS: Readonly<Record<GuestKindName, GuestKind>> = { plain: plainKind, sev: sevKind };
