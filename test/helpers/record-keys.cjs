/*
 * Loaded into a daemon before it starts (node --require): every key that the daemon gives to a cipher, a MAC or an elliptic curve is
 * written to the file that SIMKVM_KEYS names, one a line: what it was used for, and the key in hex.
 */
const crypto = require('node:crypto');
const { appendFileSync } = require('node:fs');

const file = process.env.SIMKVM_KEYS;
const known = new Set();

const record = (use, key) => {
  if (!(key instanceof Uint8Array)) return;
  const line = `${use} ${Buffer.from(key).toString('hex')}\n`;
  if (known.has(line)) return;
  known.add(line);
  appendFileSync(file, line);
};

for (const name of ['createCipheriv', 'createDecipheriv', 'createHmac']) {
  const real = crypto[name];
  crypto[name] = (algorithm, key, ...rest) => {
    record(`${name === 'createHmac' ? 'hmac-' : ''}${algorithm}`, key);
    return real(algorithm, key, ...rest);
  };
}

const { createECDH } = crypto;
crypto.createECDH = (curve) => {
  const ecdh = createECDH(curve);
  const setPrivateKey = ecdh.setPrivateKey.bind(ecdh);
  ecdh.setPrivateKey = (key) => {
    record(curve, key);
    return setPrivateKey(key);
  };
  return ecdh;
};
