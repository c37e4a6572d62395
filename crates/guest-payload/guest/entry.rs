//! The way into Rust, and the interrupt handlers.
//!
//! Two ways lead to `long_common`: the PVH entry (32-bit protected mode), and the trampoline, a page
//! in low memory where other CPUs start and where the firmware wakes the machine (real mode). The
//! trampoline carries with it where it leads, since a machine may load the guest's image again when
//! it wakes: then nothing in it is as it was left.

use core::arch::global_asm;

/// Where the trampoline lies: a page below 1 MiB, for start-up messages.
pub const TRAMPOLINE: u64 = 0x8000;
/// Where it leads: a function, a stack and an argument, eight bytes each.
const DESTINATION: u64 = TRAMPOLINE + 0xf00;
/// The PIC's first vector, and the local APIC's timer.
pub const FIRST_IRQ_VECTOR: usize = 32;
pub const LOCAL_TIMER_VECTOR: usize = 48;
pub const SERIAL_VECTOR: usize = 49;
pub const SPURIOUS_VECTOR: usize = 255;
/// Bytes from one stub to the next.
pub const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    /// The top of the boot CPU's stack.
    pub static main_stack_end: u8;
    pub static other_stack_end: u8;
    pub static interrupt_stack_end: u8;
    pub static nmi_stack_end: u8;
    pub static trampoline: u8;
    pub static trampoline_end: u8;
    /// The descriptor table; the task state's place in it is filled in by Rust.
    pub static mut descriptors: [u64; 6];
    /// Stubs of exceptions 0 to 31, then those of interrupts 0 to 15.
    pub static exception_stubs: u8;
    pub static interrupt_stubs: u8;
    pub static timer_stub: u8;
    pub static local_timer_stub: u8;
    pub static local_stub: u8;
    pub static nmi_stub: u8;
    pub static spurious_stub: u8;
    /// Interrupts of the timer.
    pub static mut timer_count_all: u64;
    /// NMIs that nobody has asked for yet.
    pub static mut nmi_count: u32;
}

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start

    .section .text.entry, "ax", @progbits
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    movl %ebx, long_argument
build_tables:
    // The first 4 GiB mapped to themselves, in pages of 2 MiB.
    movl $(pdpt + 3), pml4
    movl $(directories + 3), %eax
    movl $pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $directories, %edi
    movl $0x83, %eax
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    // PAE on; the caches of a CPU that was reset, too.
    movl $0x20, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax
    orl $0x80000003, %eax
    movl %eax, %cr0
    lgdt descriptors_pointer
    ljmp $8, $long_common
protected:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    // Other CPUs write the same tables again.
    movl $long_target, %edi
    movl ${destination}, %esi
    movl $6, %ecx
    rep movsl
    jmp build_tables

    .code64
long_common:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq long_stack, %rsp
    movq long_argument, %rdi
    xorl %ebp, %ebp
    call *long_target
    ud2

    .code16
    .global trampoline
    .global trampoline_end
trampoline:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl {trampoline_at} + (trampoline_pointer - trampoline)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $protected
    .align 4
trampoline_pointer:
    .word 47
    .long descriptors
trampoline_end:

    .code64
    .align 16
    .global exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .align 16
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr
exception_common:
    movq %rsp, %rdi
    andq $-16, %rsp
    cld
    call {fault}
    ud2

    // An interrupt of the PIC: the line is masked until the guest has looked around.
    .align 16
    .global interrupt_stubs
interrupt_stubs:
    .set line, 0
    .rept 16
    .align 16
    pushq $line
    jmp interrupt_common
    .set line, line + 1
    .endr
interrupt_common:
    pushq %rax
    pushq %rcx
    movl 16(%rsp), %ecx
    cmpl $8, %ecx
    jae 1f
    inb $0x21, %al
    btsl %ecx, %eax
    outb %al, $0x21
    jmp 2f
1:  subl $8, %ecx
    inb $0xa1, %al
    btsl %ecx, %eax
    outb %al, $0xa1
    movb $0x20, %al
    outb %al, $0xa0
2:  movb $0x20, %al
    outb %al, $0x20
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq

    .macro count_time
    incq timer_count_all
    incl timer_count
    movl timer_count, %eax
    cmpl timer_per_tick, %eax
    jb 1f
    movl $0, timer_count
    incq {ticks}
1:
    .endm

    .global timer_stub
timer_stub:
    pushq %rax
    count_time
    movb $0x20, %al
    outb %al, $0x20
    popq %rax
    iretq

    .global local_timer_stub
local_timer_stub:
    pushq %rax
    count_time
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

    .global local_stub
local_stub:
    pushq %rax
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

    .global nmi_stub
nmi_stub:
    lock incl nmi_count
    iretq

    .global spurious_stub
spurious_stub:
    iretq

    .section .data
    .align 16
    .global descriptors
descriptors:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
    .quad 0, 0
descriptors_pointer:
    .word 47
    .quad descriptors
    .align 8
long_target: .quad {begin}
long_stack: .quad main_stack_end
long_argument: .quad 0
    .global timer_per_tick
timer_per_tick: .long 5

    .section .bss
    .align 4096
pml4: .skip 4096
pdpt: .skip 4096
directories: .skip 16384
    .skip 16384
    .global main_stack_end
main_stack_end:
    .skip 8192
    .global other_stack_end
other_stack_end:
    .skip 8192
    .global interrupt_stack_end
interrupt_stack_end:
    .skip 4096
    .global nmi_stack_end
nmi_stack_end:
    .align 8
    .global timer_count
    .global timer_count_all
    .global nmi_count
timer_count_all: .skip 8
timer_count: .skip 4
nmi_count: .skip 4
    .section .text
"#,
    begin = sym crate::begin,
    fault = sym crate::interrupts::fault,
    trampoline_at = const TRAMPOLINE,
    destination = const DESTINATION,
    ticks = const crate::tick_page::TICKS,
    options(att_syntax)
);

/// Copies the trampoline to its page and says where it leads.
pub fn set_trampoline(target: extern "C" fn(u64) -> !, stack_end: u64, argument: u64) {
    // SAFETY: the page is ours, and whoever comes along reads these words only after this.
    unsafe {
        let start = &raw const trampoline;
        let bytes = (&raw const trampoline_end).offset_from_unsigned(start);
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, bytes);
        let destination = [target as usize as u64, stack_end, argument];
        (DESTINATION as *mut [u64; 3]).write_volatile(destination);
    }
}
