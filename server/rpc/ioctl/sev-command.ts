import { failed } from '../../kernel/failure.js';
import { InlineCopy } from '../../kernel/fs/inline-copy.js';
import { IOCTL } from '../../kernel/uapi/ioctls.js';
import { KVM_SEV_CMD, type KvmSevCmdName, kvm_sev_cmd } from '../../kernel/uapi/sev-structs.js';
import type { Fields, Struct } from '../../kernel/uapi/struct.js';
import { refused } from '../call.js';
import { type Pointer, structArg } from './arg-codec.js';
import { type IoctlMethod, issue, mmOf } from './method.js';
import { isMessage, type Message } from './struct-message.js';

/** The command's own structure: which field of the messages it is, and whether the kernel writes to it. */
export interface SevStructure {
  readonly struct: Struct<Fields>;
  readonly field: string;
  readonly answers?: boolean;
  readonly pointers?: readonly Pointer[];
}

/**
 * One command of KVM_MEMORY_ENCRYPT_OP as an RPC. The response has the firmware's status in `error`, also where the
 * call failed.
 */
export const sevCommand = (name: KvmSevCmdName, structure?: SevStructure): IoctlMethod => {
  const codec = structure === undefined ? null : structArg(structure.struct, { pointers: structure.pointers ?? [] });
  return {
    role: 'process',
    mutates: true,
    syscall: `KVM_SEV_${name}`,
    handle(current, _host, request) {
      const inline = new InlineCopy(mmOf(current));
      const message = structure === undefined ? null : request[structure.field];
      const data = codec?.encode(isMessage(message) ? message : {}, inline, structure?.field ?? '') ?? 0n;
      if (failed(data)) return refused(data);
      const sev_fd = typeof request.sev_fd === 'number' ? request.sev_fd >>> 0 : 0xffff_ffff;
      const value = inline.place(kvm_sev_cmd.encode({ id: KVM_SEV_CMD[name], data, sev_fd }));
      const answer = (): Message => {
        const { error } = kvm_sev_cmd.decode(inline.contents(value));
        if (codec === null || structure?.answers !== true) return { error };
        return { error, [structure.field]: codec.decode(data, inline) };
      };
      return issue(current, request, IOCTL.KVM_MEMORY_ENCRYPT_OP, inline, { value, answer });
    },
  };
};
