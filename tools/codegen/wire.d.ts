import type { MessageType } from './messages.js';

/**
 * A request as it is sent.
 * @throws RangeError that names the first field with a number that it cannot have
 */
export declare const requestBytes: <T, I>(type: MessageType<T, I>, message: I) => Buffer;
