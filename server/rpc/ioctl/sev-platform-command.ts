import { failed } from '../../kernel/failure.js';
import { InlineCopy } from '../../kernel/fs/inline-copy.js';
import { IOCTL } from '../../kernel/uapi/ioctls.js';
import { SEV_RET_NO_FW_CALL, SEV_USER_CMD, type SevUserCmdName, sev_issue_cmd } from '../../kernel/uapi/sev-structs.js';
import { refused } from '../call.js';
import { structArg } from './arg-codec.js';
import { type IoctlMethod, issue, mmOf } from './method.js';
import type { SevStructure } from './sev-command.js';
import { isMessage, type Message } from './struct-message.js';

/** In psp-sev.h the commands of SEV-SNP have no prefix, and all others this one. */
const syscallOf = (name: SevUserCmdName): string => (name.startsWith('SNP_') ? name : `SEV_${name}`);

/**
 * One command of SEV_ISSUE_CMD as an RPC. The response has the firmware's status in `error`, also where the call failed.
 * @param mutates false: asked a second time it does no harm
 */
export const sevPlatformCommand = (name: SevUserCmdName, structure?: SevStructure, mutates = true): IoctlMethod => {
  const codec = structure === undefined ? null : structArg(structure.struct, { pointers: structure.pointers ?? [] });
  return {
    role: 'process',
    mutates,
    syscall: syscallOf(name),
    handle(current, _host, request) {
      const inline = new InlineCopy(mmOf(current));
      const message = structure === undefined ? null : request[structure.field];
      const data = codec?.encode(isMessage(message) ? message : {}, inline, structure?.field ?? '') ?? 0n;
      if (failed(data)) return refused(data);
      const value = inline.place(sev_issue_cmd.encode({ cmd: SEV_USER_CMD[name], data, error: SEV_RET_NO_FW_CALL }));
      const answer = (): Message => {
        const { error } = sev_issue_cmd.decode(inline.contents(value));
        if (codec === null || structure?.answers !== true) return { error };
        return { error, [structure.field]: codec.decode(data, inline) };
      };
      return issue(current, request, IOCTL.SEV_ISSUE_CMD, inline, { value, answer });
    },
  };
};
