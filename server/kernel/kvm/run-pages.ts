import { PAGE_SIZE } from '../../hardware/units.js';
import { failed, type Result } from '../failure.js';
import type { KmemCharge, KmemOwner } from '../kmem.js';
import type { Page } from '../mm/page.js';
import type { PageProvider } from '../mm/page-provider.js';

/** A page of the kernel's own that userspace maps; the kernel sees it as bytes and through a DataView. */
export class SharedPage {
  private cached: DataView | null = null;

  private constructor(
    readonly page: Page,
    private readonly charge: KmemCharge,
  ) {}

  /** A zeroed page, charged to `kmem` as `type`; ENOMEM. */
  static allocate(provider: PageProvider, kmem: KmemOwner, type: string): Result<SharedPage> {
    const page = provider.allocate();
    return failed(page) ? page : new SharedPage(page, kmem.charge(type, PAGE_SIZE));
  }

  /** The page's bytes. Looked up anew by each user: a guest's encryption may have turned them in between. */
  get bytes(): Uint8Array {
    return this.page.frame.viewForWrite(null);
  }

  get view(): DataView {
    const bytes = this.page.frame.viewForWrite(null);
    this.cached ??= new DataView(bytes.buffer, bytes.byteOffset, PAGE_SIZE);
    return this.cached;
  }

  free(): void {
    this.charge.release();
    this.page.put();
  }
}

/** `vcpu->run` and `vcpu->arch.pio_data`; layout of the first in uapi, `struct kvm_run`. */
export class RunPages {
  private constructor(
    /** `struct kvm_run`. */
    readonly run: SharedPage,
    /** Data of PIO exits, at offset 4096 of the mapping. */
    readonly pio: SharedPage,
  ) {}

  static allocate(provider: PageProvider, kmem: KmemOwner): Result<RunPages> {
    const run = SharedPage.allocate(provider, kmem, 'kvm_run');
    if (failed(run)) return run;
    const pio = SharedPage.allocate(provider, kmem, 'pio_data');
    if (!failed(pio)) return new RunPages(run, pio);
    run.free();
    return pio;
  }

  free(): void {
    this.run.free();
    this.pio.free();
  }
}
