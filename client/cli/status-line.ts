/** The last line of a terminal, which is written over and over. */
export interface StatusLine {
  /** What fits into one line of it. */
  show(text: string): void;
  /** Leaves nothing of it. */
  clear(): void;
}

const CLEAR_LINE = '\r\u001b[2K';
const COLUMNS = 80;

/** On a terminal; null elsewhere: what is written over cannot be read in a file. */
export const terminalStatusLine = (stream: NodeJS.WriteStream): StatusLine | null => {
  if (!stream.isTTY) return null;
  return {
    show: (text) => void stream.write(CLEAR_LINE + text.slice(0, (stream.columns ?? COLUMNS) - 1)),
    clear: () => void stream.write(CLEAR_LINE),
  };
};
