/** How to speak to a host that was started with `--tls-cert`. All PEM: the text, and not the name of a file. */
export interface ClientTls {
  /** Authorities that vouch for the host. */
  readonly ca: string | Uint8Array;
  /** The certificate of whoever calls, and its private key: the host wants to see one. */
  readonly cert: string | Uint8Array;
  readonly key: string | Uint8Array;
}
