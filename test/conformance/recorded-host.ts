import { DEFAULT_HOST_CONFIG, type HostConfig } from '../../server/kernel/config.js';

/** A host like the one that was recorded: an AMD processor on which SEV is off. */
export const RECORDED_HOST: HostConfig = {
  ...DEFAULT_HOST_CONFIG,
  sev: { ...DEFAULT_HOST_CONFIG.sev, enabled: false, es: false },
};
