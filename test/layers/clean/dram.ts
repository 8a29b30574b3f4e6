import { PAGE_SIZE } from './units.js';

export const frames = (bytes: number): number => bytes / PAGE_SIZE;
