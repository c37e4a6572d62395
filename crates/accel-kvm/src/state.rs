//! Architectural state, out of the kernel and into it.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_debugregs,
    kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vcpu::{
    Activity, DescriptorTable, Event, LocalApicState, Registers, Segment, SegmentRegister,
    SystemRegisters, VcpuError, VcpuState, XsaveArea,
};

use crate::msrs::KeptMsrs;

const RFLAGS_IF: u64 = 1 << 9;
/// The state components that an [`XsaveArea`] has room for: x87, SSE, AVX.
const COMPONENTS: u64 = 7;
/// Where an XSAVE area says which components it holds.
const XSTATE_BV: usize = 512;
/// x87's control word, MXCSR and MXCSR's mask after a reset.
const RESET_CONTROL: u16 = 0x40;
const RESET_MXCSR: u32 = 0x1f80;

pub(crate) fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Host {
        what,
        reason: error.to_string(),
    }
}

fn registers(regs: &kvm_regs) -> Registers {
    Registers {
        general: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

fn to_regs(registers: &Registers) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = registers.general;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: registers.rip,
        rflags: registers.rflags | 2,
    }
}

fn segment(from: &kvm_segment) -> Segment {
    Segment {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        kind: from.type_ & 15,
        code_or_data: from.s != 0,
        dpl: from.dpl & 3,
        present: from.present != 0,
        available: from.avl != 0,
        long: from.l != 0,
        big: from.db != 0,
        granular: from.g != 0,
        unusable: from.unusable != 0,
    }
}

fn to_segment(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind,
        present: from.present.into(),
        dpl: from.dpl,
        db: from.big.into(),
        s: from.code_or_data.into(),
        l: from.long.into(),
        g: from.granular.into(),
        avl: from.available.into(),
        unusable: from.unusable.into(),
        padding: 0,
    }
}

fn table(from: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: from.base,
        limit: from.limit,
    }
}

fn to_table(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: from.base,
        limit: from.limit,
        padding: [0; 3],
    }
}

fn system(sregs: &kvm_sregs, debug: &kvm_debugregs, xcr0: u64) -> SystemRegisters {
    let segments = [
        &sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs,
    ];
    SystemRegisters {
        segments: segments.map(segment),
        ldtr: segment(&sregs.ldt),
        tr: segment(&sregs.tr),
        gdtr: table(&sregs.gdt),
        idtr: table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        xcr0,
        dr: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        efer: sregs.efer,
    }
}

/// `apic_base` is the board's; what the kernel has stays.
fn to_sregs(system: &SystemRegisters, apic_base: u64) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = system.segments.map(|one| to_segment(&one));
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: to_segment(&system.tr),
        ldt: to_segment(&system.ldtr),
        gdt: to_table(&system.gdtr),
        idt: to_table(&system.idtr),
        cr0: system.cr0,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        cr8: system.cr8,
        efer: system.efer,
        apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn area(xsave: &kvm_xsave) -> XsaveArea {
    let mut area = XsaveArea::default();
    for (to, from) in area.0.chunks_exact_mut(4).zip(&xsave.region) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    // Components that there is no room for are those that the guest has not.
    if let Some(held) = area.0.get_mut(XSTATE_BV..XSTATE_BV + 8) {
        let mut bits = [0; 8];
        bits.copy_from_slice(held);
        held.copy_from_slice(&(u64::from_le_bytes(bits) & COMPONENTS).to_le_bytes());
    }
    area
}

fn to_xsave(area: &XsaveArea) -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    let (words, _) = area.0.as_chunks::<4>();
    for (to, from) in xsave.region.iter_mut().zip(words) {
        *to = u32::from_le_bytes(*from);
    }
    xsave
}

fn event(events: &kvm_vcpu_events) -> Option<Event> {
    let exception = &events.exception;
    if exception.injected != 0 || exception.pending != 0 {
        return Some(Event::Exception {
            vector: exception.nr,
            error: (exception.has_error_code != 0).then_some(exception.error_code),
        });
    }
    (events.interrupt.injected != 0).then_some(Event::Interrupt(events.interrupt.nr))
}

fn to_events(state: &VcpuState) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    match state.event {
        Some(Event::Exception { vector, error }) => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error.is_some().into();
            events.exception.error_code = error.unwrap_or(0);
        }
        Some(Event::Interrupt(vector)) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        None => {}
    }
    events.nmi.pending = state.nmi_pending.into();
    events.nmi.masked = state.nmi_masked.into();
    if state.interrupt_shadow {
        // The hardware takes STI's shadow with RFLAGS.IF only.
        let shadow = match state.registers.rflags & RFLAGS_IF {
            0 => KVM_X86_SHADOW_INT_MOV_SS,
            _ => KVM_X86_SHADOW_INT_STI,
        };
        events.interrupt.shadow = u8::try_from(shadow).unwrap_or(0);
    }
    events
}

/// What the processor does. The kernel takes INIT and start-up messages that wait when it is asked.
pub(crate) fn activity(vcpu: &VcpuFd) -> Result<Activity, VcpuError> {
    let state = vcpu
        .get_mp_state()
        .map_err(refused("say what a vCPU does"))?;
    Ok(match state.mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED => Activity::WaitsForInit,
        KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => Activity::WaitsForStartUp,
        _ => Activity::Running,
    })
}

fn set_activity(vcpu: &VcpuFd, activity: Activity) -> Result<(), VcpuError> {
    let mp_state = match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitsForInit => KVM_MP_STATE_UNINITIALIZED,
        Activity::WaitsForStartUp => KVM_MP_STATE_INIT_RECEIVED,
    };
    vcpu.set_mp_state(kvm_mp_state { mp_state })
        .map_err(bad("what a vCPU does"))
}

/// The local APIC that the kernel has for this vCPU.
pub(crate) fn local_apic(vcpu: &VcpuFd) -> Result<LocalApicState, VcpuError> {
    let activity = activity(vcpu)?;
    let sregs = vcpu.get_sregs().map_err(refused("read system registers"))?;
    let apic = vcpu.get_lapic().map_err(refused("read a local APIC"))?;
    Ok(LocalApicState {
        base: sregs.apic_base,
        activity,
        registers: Box::new(apic.regs.map(i8::cast_unsigned)),
    })
}

/// All state. `has_apic`: the local APIC is in the kernel.
pub(crate) fn get(vcpu: &VcpuFd, msrs: &KeptMsrs, has_apic: bool) -> Result<VcpuState, VcpuError> {
    // First, since it may start the processor.
    let local_apic = has_apic.then(|| local_apic(vcpu)).transpose()?;
    let regs = vcpu.get_regs().map_err(refused("read registers"))?;
    let sregs = vcpu.get_sregs().map_err(refused("read system registers"))?;
    let debug = vcpu
        .get_debug_regs()
        .map_err(refused("read debug registers"))?;
    let xcrs = vcpu.get_xcrs().map_err(refused("read XCR0"))?;
    let xsave = vcpu.get_xsave().map_err(refused("read the XSAVE area"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(refused("read pending events"))?;
    let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(0);
    let mut held = xcrs.xcrs.iter().take(count);
    let xcr0 = held.find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value);
    Ok(VcpuState {
        registers: registers(&regs),
        system: system(&sregs, &debug, xcr0),
        msrs: msrs.get(vcpu)?,
        xsave: area(&xsave),
        event: event(&events),
        nmi_pending: events.nmi.pending != 0 || events.nmi.injected != 0,
        nmi_masked: events.nmi.masked != 0,
        interrupt_shadow: events.interrupt.shadow != 0,
        local_apic,
    })
}

fn check(state: &VcpuState) -> Result<(), VcpuError> {
    const PE: u64 = 1;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    let s = &state.system;
    let bad = |what: &str| Err(VcpuError::BadState(what.to_owned()));
    if s.cr0 & PG != 0 && s.cr0 & PE == 0 {
        return bad("CR0.PG without CR0.PE");
    }
    if s.efer & LMA != 0 && (s.cr0 & PG == 0 || s.cr4 & PAE == 0 || s.efer & LME == 0) {
        return bad("EFER.LMA without paging, PAE and EFER.LME");
    }
    if s.xcr0 & 1 == 0 || s.xcr0 & !COMPONENTS != 0 {
        return bad("XCR0 with what this CPU has not");
    }
    Ok(())
}

/// A refusal of values, as the kernel says it, is about the state.
fn bad(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |error| match error.errno() {
        libc::EINVAL => VcpuError::BadState(what.to_owned()),
        _ => refused(what)(error),
    }
}

/// Replaces all state; MSRs, and the local APIC if `has_apic`, as far as they are given.
pub(crate) fn set(
    vcpu: &VcpuFd,
    msrs: &KeptMsrs,
    state: &VcpuState,
    has_apic: bool,
) -> Result<(), VcpuError> {
    check(state)?;
    let local_apic = state.local_apic.as_ref().filter(|_| has_apic);
    if has_apic {
        // Messages that wait are the old state's.
        activity(vcpu)?;
    }
    let apic_base = match local_apic {
        Some(apic) => apic.base,
        None => {
            let sregs = vcpu.get_sregs();
            sregs.map_err(refused("read system registers"))?.apic_base
        }
    };
    vcpu.set_sregs(&to_sregs(&state.system, apic_base))
        .map_err(bad("system registers"))?;
    vcpu.set_regs(&to_regs(&state.registers))
        .map_err(bad("registers"))?;
    // SAFETY: the area is a whole `kvm_xsave` of 4096 bytes; components that would need more (AMX) are never enabled.
    unsafe { vcpu.set_xsave(&to_xsave(&state.xsave)) }.map_err(bad("the XSAVE area"))?;
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    if let Some(first) = xcrs.xcrs.first_mut() {
        first.value = state.system.xcr0;
    }
    vcpu.set_xcrs(&xcrs).map_err(bad("XCR0"))?;
    if let Some(apic) = local_apic {
        let regs = apic.registers.map(u8::cast_signed);
        vcpu.set_lapic(&kvm_lapic_state { regs })
            .map_err(bad("the local APIC"))?;
    }
    // The APIC's deadline needs its mode.
    msrs.set(vcpu, &state.msrs)?;
    let debug = kvm_debugregs {
        db: state.system.dr,
        dr6: state.system.dr6,
        dr7: state.system.dr7,
        ..kvm_debugregs::default()
    };
    vcpu.set_debug_regs(&debug)
        .map_err(bad("debug registers"))?;
    vcpu.set_vcpu_events(&to_events(state))
        .map_err(bad("pending events"))?;
    if has_apic {
        set_activity(
            vcpu,
            local_apic.map_or(Activity::Running, |apic| apic.activity),
        )?;
    }
    Ok(())
}

/// The state after RESET# (Intel SDM 3, "Processor State After Reset"), without MSRs. `signature` is EAX of CPUID 1.
pub(crate) fn after_reset(signature: u32) -> VcpuState {
    let data = Segment {
        limit: 0xffff,
        kind: 3,
        code_or_data: true,
        present: true,
        ..Segment::default()
    };
    let code = Segment {
        selector: 0xf000,
        base: 0xffff_0000,
        kind: 0xb,
        ..data
    };
    let other = |kind| Segment {
        limit: 0xffff,
        kind,
        present: true,
        ..Segment::default()
    };
    let whole = DescriptorTable {
        base: 0,
        limit: 0xffff,
    };
    let mut segments = [data; 6];
    if let Some(place) = segments.get_mut(SegmentRegister::Cs as usize) {
        *place = code;
    }
    let mut registers = Registers {
        rip: 0xfff0,
        rflags: 2,
        ..Registers::default()
    };
    let [_, _, rdx, ..] = &mut registers.general;
    *rdx = u64::from(signature);
    let mut xsave = XsaveArea::default();
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in xsave.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &RESET_CONTROL.to_le_bytes());
    put(24, &RESET_MXCSR.to_le_bytes());
    put(XSTATE_BV, &3_u64.to_le_bytes());
    VcpuState {
        registers,
        system: SystemRegisters {
            segments,
            ldtr: other(2),
            tr: other(0xb),
            gdtr: whole,
            idtr: whole,
            cr0: 0x6000_0010,
            xcr0: 1,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            ..SystemRegisters::default()
        },
        xsave,
        ..VcpuState::default()
    }
}

/// Whether an interrupt could be taken, as far as the state tells: for when the vCPU has not run since it was set.
pub(crate) fn can_take_interrupt(vcpu: &VcpuFd) -> Result<bool, VcpuError> {
    let regs = vcpu.get_regs().map_err(refused("read registers"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(refused("read pending events"))?;
    Ok(regs.rflags & RFLAGS_IF != 0
        && events.interrupt.shadow == 0
        && events.nmi.injected == 0
        && event(&events).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_segments_go_round() {
        let mut state = after_reset(0x60fb1);
        for (number, place) in (1..).zip(&mut state.registers.general) {
            *place = number;
        }
        assert_eq!(registers(&to_regs(&state.registers)), state.registers);
        assert_eq!(to_regs(&state.registers).rsi, 7);
        state.system.dr = [4, 5, 6, 7];
        let debug = kvm_debugregs {
            db: state.system.dr,
            dr6: state.system.dr6,
            dr7: state.system.dr7,
            ..kvm_debugregs::default()
        };
        let back = system(&to_sregs(&state.system, 0), &debug, 1);
        assert_eq!(back, state.system);
    }

    #[test]
    fn events_go_round() {
        for wanted in [
            None,
            Some(Event::Interrupt(0x42)),
            Some(Event::Exception {
                vector: 14,
                error: Some(6),
            }),
            Some(Event::Exception {
                vector: 1,
                error: None,
            }),
        ] {
            let state = VcpuState {
                event: wanted,
                ..VcpuState::default()
            };
            assert_eq!(event(&to_events(&state)), wanted);
        }
    }

    #[test]
    fn components_without_room_are_dropped() {
        let mut xsave = kvm_xsave::default();
        xsave.region.fill(u32::MAX);
        let back = to_xsave(&area(&xsave));
        let held: Vec<u32> = back.region.iter().skip(128).take(2).copied().collect();
        assert_eq!(held, [7, 0]);
        assert_eq!(back.region.iter().filter(|word| **word != 0).count(), 207);
    }
}
