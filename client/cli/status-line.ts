/** The last line of a terminal, which is written over and over. */
export interface StatusLine {
  /** The first of these that fits into one line of it, or what fits of the last. */
  show(forms: readonly string[]): void;
  /** Leaves nothing of it. */
  clear(): void;
}

/** What of a terminal's stream is used. */
type Terminal = Pick<NodeJS.WritableStream, 'write'> & { readonly isTTY?: boolean; readonly columns?: number | undefined };

const CLEAR_LINE = '\r\u001b[2K';
const COLUMNS = 80;

/** On a terminal; null elsewhere: what is written over cannot be read in a file. */
export const terminalStatusLine = (stream: Terminal): StatusLine | null => {
  if (!stream.isTTY) return null;
  return {
    show: (forms) => {
      const room = (stream.columns || COLUMNS) - 1;
      const text = forms.find(({ length }) => length <= room) ?? forms.at(-1) ?? '';
      stream.write(CLEAR_LINE + text.slice(0, room));
    },
    clear: () => void stream.write(CLEAR_LINE),
  };
};
