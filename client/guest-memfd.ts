import { File } from './file.js';

/**
 * A file of guest memory, made by `vm.createGuestMemfd`, that its owner cannot map unless it was made so. It holds a
 * reference on its VM. `fallocate` with FALLOC_FL_PUNCH_HOLE gives memory back: no gate of the VM stops that.
 */
export class GuestMemfd extends File {}
