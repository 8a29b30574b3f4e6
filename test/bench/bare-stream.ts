import { createCipheriv, createDecipheriv, createHmac, randomFillSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import {
  Client,
  credentials,
  type handleServerStreamingCall,
  type handleUnaryCall,
  Server,
  ServerCredentials,
  status,
} from '@grpc/grpc-js';
import { BARE_STREAM, type FetchRequest, STORE_BYTES } from './bare-stream-contract.js';

/*
 * The denominator of a migration: a grpc-js server from which another process like this one pulls what lies in its memory,
 * into memory of its own. Nothing else happens to the bytes but the work that is asked for.
 */

const [cert, key, ca] = process.argv.slice(2).map((path) => readFileSync(path));
const MESSAGE_MAX = 4 * 2 ** 20;
const PAGE = 4096;
const HEADER = 52;
const TAG = 16;
const NONCE = new Uint8Array(12);
const IV = new Uint8Array(16).fill(1);
const KEY = new Uint8Array(16).fill(7);
const SEAL_KEY = new Uint8Array(32).fill(7);

/** Touched, as a guest's memory is, and incompressible. */
const store = randomFillSync(Buffer.alloc(STORE_BYTES));

interface Work {
  /** Bytes of the message that carries so many bytes of memory. */
  size(bytes: number): number;
  leave(memory: Buffer): Buffer;
  /** @throws Error where something has been changed on the way */
  arrive(message: Buffer, memory: Buffer): void;
}

const refuse = (): never => {
  throw new Error('not authentic');
};

/** AES-128-CTR and HMAC-SHA-256 of each page, with a header that the MAC is in: what SEV's transport asks for. */
const packets: Work = {
  size: (bytes) => (bytes / PAGE) * (PAGE + HEADER),
  leave: (memory) => {
    const pages = memory.length / PAGE;
    const message = Buffer.allocUnsafe(packets.size(memory.length));
    for (let page = 0; page < pages; page++) {
      const at = pages * HEADER + page * PAGE;
      const data = createCipheriv('aes-128-ctr', KEY, IV).update(memory.subarray(page * PAGE, (page + 1) * PAGE));
      message.set(IV, page * HEADER);
      message.set(createHmac('sha256', KEY).update(IV).update(data).digest(), page * HEADER + IV.length);
      message.set(data, at);
    }
    return message;
  },
  arrive: (message, memory) => {
    const pages = memory.length / PAGE;
    for (let page = 0; page < pages; page++) {
      const at = pages * HEADER + page * PAGE;
      const header = message.subarray(page * HEADER, (page + 1) * HEADER);
      const data = message.subarray(at, at + PAGE);
      const iv = header.subarray(0, IV.length);
      const mac = createHmac('sha256', KEY).update(iv).update(data).digest();
      if (!mac.equals(header.subarray(IV.length, IV.length + mac.length))) refuse();
      memory.set(createDecipheriv('aes-128-ctr', KEY, iv).update(data), page * PAGE);
    }
  },
};

const WORK: Readonly<Record<FetchRequest['work'], Work>> = {
  none: {
    size: (bytes) => bytes,
    leave: (memory) => memory,
    arrive: (message, memory) => void memory.set(message),
  },
  packets,
  /** AES-256-GCM of each message. */
  seal: {
    size: (bytes) => bytes + TAG,
    leave: (memory) => {
      const cipher = createCipheriv('aes-256-gcm', SEAL_KEY, NONCE);
      const data = cipher.update(memory);
      cipher.final();
      return Buffer.concat([data, cipher.getAuthTag()]);
    },
    arrive: (message, memory) => {
      const end = message.length - TAG;
      const decipher = createDecipheriv('aes-256-gcm', SEAL_KEY, NONCE).setAuthTag(message.subarray(end));
      memory.set(decipher.update(message.subarray(0, end)));
      decipher.final();
    },
  },
};

const pull: handleServerStreamingCall<FetchRequest, Buffer> = (call) => {
  const { bytes, messageBytes, work } = call.request;
  let at = 0;
  const send = (): void => {
    while (at < bytes) {
      const from = at % STORE_BYTES;
      at += messageBytes;
      if (!call.write(WORK[work].leave(store.subarray(from, from + messageBytes)))) return;
    }
    call.end();
  };
  call.on('drain', send);
  send();
};

const secured = cert !== undefined && key !== undefined && ca !== undefined;

const fetchFrom = (request: FetchRequest): Promise<void> => {
  const client = new Client(request.from, secured ? credentials.createSsl(ca, key, cert) : credentials.createInsecure(), {
    'grpc-node.flow_control_window': request.window,
    'grpc.max_receive_message_length': MESSAGE_MAX,
  });
  const { path, requestSerialize, responseDeserialize } = BARE_STREAM.pull;
  const { arrive, size } = WORK[request.work];
  let at = 0;
  return new Promise<void>((resolve, reject) => {
    const call = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request);
    call.on('data', (message: Buffer) => {
      if (message.length !== size(request.messageBytes)) refuse();
      const to = at % STORE_BYTES;
      arrive(message, store.subarray(to, to + request.messageBytes));
      at += request.messageBytes;
    });
    call.on('error', reject);
    call.on('end', () => (at === request.bytes ? resolve() : reject(new Error(`${at} bytes have come`))));
  }).finally(() => client.close());
};

const fetch: handleUnaryCall<FetchRequest, Buffer> = ({ request }, callback) => {
  fetchFrom(request).then(
    () => callback(null, Buffer.alloc(0)),
    (error: unknown) => callback({ code: status.INTERNAL, details: String(error) }),
  );
};

const server = new Server({ 'grpc.max_send_message_length': MESSAGE_MAX });
server.addService(BARE_STREAM, { pull, fetch });
const serverCredentials = secured
  ? ServerCredentials.createSsl(ca, [{ private_key: key, cert_chain: cert }], true)
  : ServerCredentials.createInsecure();
server.bindAsync('127.0.0.1:0', serverCredentials, (error, port) => {
  if (error !== null) throw error;
  process.stdout.write(`bare stream listening on 127.0.0.1:${port}\n`);
});
