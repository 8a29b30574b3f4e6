/** Bytes in pieces that follow one another: what lies in several places need not be copied to be one message. */
export type Pieces = readonly Uint8Array[];

export const bytesOf = (pieces: Pieces): number => {
  let bytes = 0;
  for (const { length } of pieces) bytes += length;
  return bytes;
};
