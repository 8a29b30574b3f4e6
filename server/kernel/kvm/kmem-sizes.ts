import { PAGE_SIZE } from '../../hardware/units.js';

/**
 * Sizes of KVM's kernel objects on x86-64, in bytes, each with where it comes from. "Counted" means added up by hand
 * from the structure's members in the named header (6.18), with natural alignment; it was not printed by a compiler.
 * `kvm_run`, `pio_data`, `kvm_coalesced_mmio_ring` and `dirty_ring` are whole pages, charged by `SharedPage`.
 */
export const KMEM_SIZE = {
  /** `struct kvm_svm` / `kvm_vmx`: four `kvm_memslots` of 1,080 bytes and `kvm_arch`; x86.c asserts order 1 at most [M]. */
  kvm: 8192,
  /** Object size of the slab `kvm_vcpu` in /proc/slabinfo, for `struct vcpu_vmx`; `vcpu_svm` is near it [M]. */
  kvm_vcpu: 9152,
  /** `struct kvm_coalesced_mmio_dev` (coalesced_mmio.h): list 16, device 8, kvm 8, zone 16. Counted. */
  kvm_coalesced_mmio_dev: 48,
  /** `struct kvm_memory_slot` (kvm_host.h): nodes 176, base, npages, bitmap 24, arch 48, address 8, ids 8, gmem 16. Counted. */
  kvm_memory_slot: 280,
  /** `struct kvm_rmap_head` (kvm_host.h): one word for each page of a slot, at each page size. */
  kvm_rmap_head: 8,
  /** `struct kvm_lpage_info` (kvm_host.h): one int for each 2 MiB and each 1 GiB region of a slot. */
  kvm_lpage_info: 4,
  /** `struct kvm_mmu_page` (mmu_internal.h), slab `kvm_mmu_page_header`: one beside each page of a nested page table [M]. */
  kvm_mmu_page_header: 184,
  /** `struct kvm_io_bus` (kvm_host.h) without its ranges: two counts, rcu_head. Counted. */
  kvm_io_bus: 24,
  /** `struct kvm_io_range`: address 8, length 4 (+4), device 8. */
  kvm_io_range: 24,
  /**
   * `struct _ioeventfd` (eventfd.c): list 16, addr 8, length 8, eventfd 8, datamatch 8, device 8, bus and wildcard 8. Counted.
   */
  _ioeventfd: 64,
  /** `struct kvm_kernel_irqfd` (kvm_irqfd.h): wait entry, routing entry, two works, poll table, bypass consumer. Counted. */
  kvm_kernel_irqfd: 336,
  /** `struct kvm_kernel_irqfd_resampler`: kvm 8, list 16, notifier 24, link 16. Counted. */
  kvm_kernel_irqfd_resampler: 64,
  /** `struct enc_region` (svm/sev.c): list 16, npages 8, pages 8, address 8, size 8. Counted. */
  enc_region: 48,
  /** `struct kvm_device` (kvm_host.h): ops, kvm, private, list node. Counted. */
  kvm_device: 40,
  /** `struct kvm_vfio` (vfio.c): file list, mutex, flag. Counted. */
  kvm_vfio: 56,
  /** `struct gmem_file` (guest_memfd.c): kvm, xarray, list entry. Counted. */
  gmem_file: 40,
  /** Node of an xarray, slab `radix_tree_node`: 64 slots [M]. */
  xa_node: 576,
} as const;

/** Buckets of kmalloc up to KMALLOC_MAX_CACHE_SIZE (mm/slab_common.c). */
const KMALLOC_BUCKETS = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192] as const;

/** What `kvmalloc(bytes)` really takes: a kmalloc bucket, or whole pages above the largest. */
export const kvmallocSize = (bytes: number): number =>
  bytes === 0 ? 0 : (KMALLOC_BUCKETS.find((bucket) => bucket >= bytes) ?? Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE);
