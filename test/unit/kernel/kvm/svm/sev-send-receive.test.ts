import { describe, expect, it } from 'vitest';
import { CHAIN_LENGTH, SEV_CERTIFICATE } from '../../../../../server/hardware/amd/certificates.js';
import { PAGE_SIZE } from '../../../../../server/hardware/units.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import {
  kvm_sev_dbg,
  kvm_sev_receive_start,
  kvm_sev_receive_update_data,
  kvm_sev_send_start,
  kvm_sev_send_update_data,
  SEV_USER_CMD,
  sev_issue_cmd,
  sev_user_data_pdh_cert_export,
} from '../../../../../server/kernel/uapi/sev-structs.js';
import { createSevRig, type Guest, type SevRig, type Vmm } from './sev-rig.js';

const CERTIFICATE = SEV_CERTIFICATE.size;
const INVALID_LENGTH = 4;
const SENDING = 4;
const SENT = 6;

const place = (vmm: Vmm, bytes: Uint8Array): bigint => {
  const address = vmm.map(null, Math.ceil(bytes.length / PAGE_SIZE) * PAGE_SIZE);
  vmm.write(address, bytes);
  return BigInt(address);
};

/** PDH, and the chain of the platform with the CEK signed by AMD, as an operator gathers them. */
const certificates = ({ vmm, host }: SevRig) => {
  const room = Number(place(vmm, new Uint8Array(4 * CERTIFICATE)));
  const request = { pdh_cert_address: BigInt(room), pdh_cert_len: CERTIFICATE, cert_chain_len: CHAIN_LENGTH };
  const data = sev_user_data_pdh_cert_export.encode({ ...request, cert_chain_address: BigInt(room + CERTIFICATE) });
  const command = sev_issue_cmd.encode({ cmd: SEV_USER_CMD.PDH_CERT_EXPORT, data: place(vmm, data) });
  vmm.process.must(vmm.process.ioctl(vmm.sevFd, IOCTL.SEV_ISSUE_CMD, command));
  const pdh = vmm.read(room, CERTIFICATE);
  const chain = vmm.read(room + CERTIFICATE, CHAIN_LENGTH);
  const authority = host.kernel.amd?.keyDistribution;
  if (authority === undefined) throw new Error('an AMD host');
  chain.set(authority.endorseChip(chain.subarray(2 * CERTIFICATE)), 2 * CERTIFICATE);
  return { pdh, chain, amd: authority.bundle() };
};

const sendStart = (vmm: Vmm, { fd }: Guest, to: ReturnType<typeof certificates>) => {
  const query = vmm.command(fd, 'SEND_START', kvm_sev_send_start.encode({}));
  expect(query).toMatchObject({ result: 'EIO', error: INVALID_LENGTH });
  const { session_len } = kvm_sev_send_start.decode(query.data);
  const session_uaddr = place(vmm, new Uint8Array(session_len));
  const pdh = { pdh_cert_uaddr: place(vmm, to.pdh), pdh_cert_len: to.pdh.length };
  const plat = { plat_certs_uaddr: place(vmm, to.chain), plat_certs_len: to.chain.length };
  const amd = { amd_certs_uaddr: place(vmm, to.amd), amd_certs_len: to.amd.length };
  const answer = vmm.must(
    vmm.command(fd, 'SEND_START', kvm_sev_send_start.encode({ ...pdh, ...plat, ...amd, session_uaddr, session_len })),
  );
  return { policy: kvm_sev_send_start.decode(answer.data).policy, session: vmm.read(Number(session_uaddr), session_len) };
};

const sendPage = (vmm: Vmm, { fd }: Guest, address: number) => {
  const query = vmm.command(
    fd,
    'SEND_UPDATE_DATA',
    kvm_sev_send_update_data.encode({ guest_uaddr: BigInt(address), guest_len: PAGE_SIZE }),
  );
  const { hdr_len } = kvm_sev_send_update_data.decode(query.data);
  const header = place(vmm, new Uint8Array(hdr_len));
  const transport = place(vmm, new Uint8Array(PAGE_SIZE));
  const guest = { guest_uaddr: BigInt(address), guest_len: PAGE_SIZE };
  const out = { hdr_uaddr: header, hdr_len, trans_uaddr: transport, trans_len: PAGE_SIZE };
  vmm.must(vmm.command(fd, 'SEND_UPDATE_DATA', kvm_sev_send_update_data.encode({ ...guest, ...out })));
  return { header: vmm.read(Number(header), hdr_len), transport: vmm.read(Number(transport), PAGE_SIZE) };
};

describe('a SEV guest that is sent to another host', () => {
  it('arrives as it was, and nobody in between reads it', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const secret = new Uint8Array(PAGE_SIZE).fill(0x5a);
    const source = here.vmm.createSevGuest();
    const from = here.vmm.map(null, PAGE_SIZE);
    here.vmm.write(from, secret);
    here.vmm.must(here.vmm.updateData(source, from, PAGE_SIZE));
    here.vmm.must(here.vmm.command(source.fd, 'LAUNCH_FINISH'));

    const target = there.vmm.createGuest(0);
    there.vmm.must(there.vmm.command(target.fd, 'INIT'));
    const { policy, session } = sendStart(here.vmm, source, certificates(there));
    expect(here.vmm.status(source).state).toBe(SENDING);
    const { pdh } = certificates(here);
    const start = { policy, pdh_uaddr: place(there.vmm, pdh), pdh_len: pdh.length, session_uaddr: place(there.vmm, session) };
    there.vmm.must(
      there.vmm.command(target.fd, 'RECEIVE_START', kvm_sev_receive_start.encode({ ...start, session_len: session.length })),
    );

    const { header, transport } = sendPage(here.vmm, source, from);
    expect(transport).not.toEqual(secret);
    const to = there.vmm.map(null, PAGE_SIZE);
    const packet = { hdr_uaddr: place(there.vmm, header), hdr_len: header.length, trans_len: transport.length };
    const guest = { guest_uaddr: BigInt(to), guest_len: PAGE_SIZE, trans_uaddr: place(there.vmm, transport) };
    there.vmm.must(
      there.vmm.command(target.fd, 'RECEIVE_UPDATE_DATA', kvm_sev_receive_update_data.encode({ ...packet, ...guest })),
    );
    expect(there.host.kernel.findings.all).toEqual([]);
    // The firmware takes the same packet again, as on real parts; that somebody used this is a finding.
    there.vmm.must(
      there.vmm.command(target.fd, 'RECEIVE_UPDATE_DATA', kvm_sev_receive_update_data.encode({ ...packet, ...guest })),
    );
    expect(there.host.kernel.findings.all.map(({ domain, kind }) => [domain, kind])).toEqual([['guest', 'PACKET_REPEATED']]);
    here.vmm.must(here.vmm.command(source.fd, 'SEND_FINISH'));
    there.vmm.must(there.vmm.command(target.fd, 'RECEIVE_FINISH'));
    expect(here.vmm.status(source).state).toBe(SENT);
    expect(there.vmm.read(to, PAGE_SIZE)).not.toEqual(secret);

    const plain = there.vmm.map(null, PAGE_SIZE);
    const dbg = kvm_sev_dbg.encode({ src_uaddr: BigInt(to), dst_uaddr: BigInt(plain), len: PAGE_SIZE });
    there.vmm.must(there.vmm.command(target.fd, 'DBG_DECRYPT', dbg));
    expect(there.vmm.read(plain, PAGE_SIZE)).toEqual(secret);
  });

  it('can be called back before it is finished', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const source = here.vmm.createSevGuest();
    here.vmm.must(here.vmm.command(source.fd, 'LAUNCH_FINISH'));
    sendStart(here.vmm, source, certificates(there));
    here.vmm.must(here.vmm.command(source.fd, 'SEND_CANCEL'));
    expect(here.vmm.status(source).state).toBe(3);
  });

  it('gives nothing of other commands’ blobs away in buffers that are longer than what the firmware writes', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { vmm } = here;
    const source = vmm.createSevGuest({ policy: 1 });
    const from = vmm.map(null, PAGE_SIZE);
    vmm.must(vmm.updateData(source, from, PAGE_SIZE));
    vmm.must(vmm.command(source.fd, 'LAUNCH_FINISH'));
    sendStart(vmm, source, certificates(there));
    // Somebody else's guest is debugged, and its plaintext passes through the kernel's buffer, page by page.
    const other = here.spawn();
    const debugged = other.createSevGuest();
    const secret = new Uint8Array(PAGE_SIZE).fill(0x5a);
    const [ram, plain] = [other.map(null, PAGE_SIZE), other.map(null, 2 * PAGE_SIZE)];
    other.write(ram, secret);
    other.must(other.updateData(debugged, ram, PAGE_SIZE));
    const dbg = { src_uaddr: BigInt(ram), dst_uaddr: BigInt(plain), len: PAGE_SIZE };
    other.must(other.command(debugged.fd, 'DBG_DECRYPT', kvm_sev_dbg.encode(dbg)));
    expect(other.read(plain, PAGE_SIZE)).toEqual(secret);

    const room = 32 * PAGE_SIZE;
    const [header, transport] = [vmm.map(null, room), vmm.map(null, room)];
    for (const address of [header, transport]) vmm.write(address, new Uint8Array(room).fill(0xee));
    const packet = { hdr_uaddr: BigInt(header), hdr_len: room, trans_uaddr: BigInt(transport), trans_len: room };
    const request = { ...packet, guest_uaddr: BigInt(from), guest_len: 64 };
    vmm.must(vmm.command(source.fd, 'SEND_UPDATE_DATA', kvm_sev_send_update_data.encode(request)));
    expect(vmm.read(header, room).subarray(52)).toEqual(new Uint8Array(room - 52));
    expect(vmm.read(transport, room).subarray(64)).toEqual(new Uint8Array(room - 64));
    const huge = kvm_sev_send_update_data.encode({ ...request, hdr_len: 2 ** 22 + 1 });
    expect(vmm.command(source.fd, 'SEND_UPDATE_DATA', huge).result).toBe('ENOMEM');
  });

  it('says how long a session is to who has too short a buffer for it, and clears what is left of a longer one', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { vmm } = here;
    const source = vmm.createSevGuest();
    vmm.must(vmm.command(source.fd, 'LAUNCH_FINISH'));
    const to = certificates(there);
    const session = place(vmm, new Uint8Array(256).fill(0xee));
    const request = {
      ...{ pdh_cert_uaddr: place(vmm, to.pdh), pdh_cert_len: to.pdh.length },
      ...{ plat_certs_uaddr: place(vmm, to.chain), plat_certs_len: to.chain.length },
      ...{ amd_certs_uaddr: place(vmm, to.amd), amd_certs_len: to.amd.length, session_uaddr: session },
    };
    const start = (change: object) => vmm.command(source.fd, 'SEND_START', kvm_sev_send_start.encode({ ...request, ...change }));
    const short = start({ session_len: 127 });
    expect([short.result, short.error, kvm_sev_send_start.decode(short.data).session_len]).toEqual(['EIO', INVALID_LENGTH, 128]);
    expect(start({ session_len: 128, plat_certs_uaddr: 0n }).result).toBe('EINVAL');
    const started = vmm.must(start({ session_len: 256 }));
    expect(kvm_sev_send_start.decode(started.data).session_len).toBe(128);
    expect(vmm.read(Number(session), 256).subarray(128)).toEqual(new Uint8Array(128));
  });

  it('EINVAL for a packet that crosses a page or lacks a part', () => {
    const { vmm } = createSevRig();
    const { fd } = vmm.createSevGuest();
    const address = BigInt(vmm.map(null, 2 * PAGE_SIZE));
    const parts = { hdr_uaddr: address, hdr_len: 52, trans_uaddr: address, trans_len: 16 };
    const send = (change: object) =>
      vmm.command(
        fd,
        'SEND_UPDATE_DATA',
        kvm_sev_send_update_data.encode({ ...parts, guest_uaddr: address, guest_len: 16, ...change }),
      );
    expect(send({ guest_uaddr: address + 4090n })).toMatchObject({ result: 'EINVAL' });
    expect(send({ guest_len: 4097 })).toMatchObject({ result: 'EINVAL' });
    expect(send({ trans_uaddr: 0n })).toMatchObject({ result: 'EINVAL' });
    expect(send({ guest_len: 0 })).toMatchObject({ result: 'EINVAL' });
    const receive = (change: object) =>
      vmm.command(
        fd,
        'RECEIVE_UPDATE_DATA',
        kvm_sev_receive_update_data.encode({ ...parts, guest_uaddr: address, guest_len: 16, ...change }),
      );
    expect(receive({ hdr_len: 0 })).toMatchObject({ result: 'EINVAL' });
    expect(receive({ guest_uaddr: address + 4090n })).toMatchObject({ result: 'EINVAL' });
    expect(vmm.command(fd, 'RECEIVE_START', kvm_sev_receive_start.encode({})).result).toBe('EINVAL');
  });
});
