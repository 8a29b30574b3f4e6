/** A table for people: columns as wide as their widest cell, numbers to the right. */
export const table = (head: readonly string[], rows: readonly (readonly (string | number | bigint)[])[]): string => {
  const cells = [head, ...rows.map((row) => row.map(String))];
  const widths = head.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const numeric = head.map((_, column) => rows.length > 0 && rows.every((row) => typeof row[column] !== 'string'));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => (numeric[column] ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0)))
      .join('  ')
      .trimEnd();
  return cells.map(line).join('\n');
};

/** Names and values, one a line. */
export const fields = (pairs: readonly (readonly [string, string | number | bigint | boolean])[]): string => {
  const width = Math.max(...pairs.map(([name]) => name.length));
  return pairs.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n');
};

/** A number of bytes for people: `12.0 MiB`. */
export const bytes = (count: bigint | number): string => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = Number(count);
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${units[unit]}`;
};

/** An address as the kernel prints it. */
export const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

/** JSON for programs: 64-bit integers as strings, as JSON of protobuf has them; bytes as base64; nulls left out. */
export const json = (value: unknown): string =>
  JSON.stringify(
    value,
    (_key, field: unknown) => {
      if (typeof field === 'bigint') return field.toString();
      if (field instanceof Uint8Array) return Buffer.from(field).toString('base64');
      return field === null ? undefined : field;
    },
    2,
  );
