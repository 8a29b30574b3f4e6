/** Writes the pages of `docs/` that are made from the code. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { PAGES } from './docs/pages.js';

mkdirSync('docs', { recursive: true });
for (const [file, page] of Object.entries(PAGES)) writeFileSync(`docs/${file}`, page());
