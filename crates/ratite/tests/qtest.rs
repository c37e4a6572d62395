//! The qtest protocol over a socket: somebody outside drives a machine whose processors do not run.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use support::machine::Machine;
use support::{PATIENCE, is_full, new_folder, wait_until};

/// One end of the protocol.
struct Qtest {
    stream: BufReader<UnixStream>,
}

impl Qtest {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn send(&mut self, line: &str) {
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        self.stream.get_mut().write_all(b"\n").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a line; all that is told until its answer, with that.
    fn ask(&mut self, line: &str) -> Vec<String> {
        self.send(line);
        let mut told = Vec::new();
        loop {
            let next = self.line();
            let is_answer = !next.starts_with("IRQ ");
            told.push(next);
            if is_answer {
                return told;
            }
        }
    }

    /// Each line with all that it is answered.
    fn check(&mut self, cases: &[(&str, &[&str])]) {
        for (line, expected) in cases {
            assert_eq!(self.ask(line), *expected, "{line}");
        }
    }
}

fn start(options: &[&str]) -> (Machine, Qtest) {
    let qtest = [
        "-m",
        "64",
        "-accel",
        "qtest",
        "-qtest",
        "unix:{dir}/qtest,server=on,wait=off",
    ];
    let machine = Machine::start_bare(&[&qtest, options].concat());
    let qtest = connect(&machine);
    (machine, qtest)
}

fn connect(machine: &Machine) -> Qtest {
    let mut stream = None;
    wait_until("the socket is there", || {
        stream = UnixStream::connect(machine.path("qtest")).ok();
        stream.is_some()
    });
    Qtest::new(stream.unwrap())
}

/// What needs no time to pass: the same with the peer.
const TIMELESS: &[(&str, &[&str])] = &[
    ("nosuch", &["FAIL Unknown command 'nosuch'"]),
    ("nosuch 1 2", &["FAIL Unknown command 'nosuch'"]),
    ("endianness", &["OK little"]),
    // Memory.
    ("read 0x1000 4", &["OK 0x00000000"]),
    ("memset 0x1000 4 0x55", &["OK"]),
    ("read 0x1000 6", &["OK 0x555555550000"]),
    ("b64read 0x1000 4", &["OK VVVVVQ=="]),
    ("b64write 0x1000 5 QUJDREU=", &["OK"]),
    ("read 4096 6", &["OK 0x414243444500"]),
    ("readb 0x1000", &["OK 0x0000000000000041"]),
    ("readw 0x1000", &["OK 0x0000000000004241"]),
    ("readl 0x1000", &["OK 0x0000000044434241"]),
    ("readq 0x1000", &["OK 0x0000004544434241"]),
    ("write 0x1001 3 0x010203", &["OK"]),
    ("readq 0x1000", &["OK 0x0000004503020141"]),
    ("writeb 0x1000 0x1ff", &["OK"]),
    ("writew 0x1002 0x1234", &["OK"]),
    ("writel 0x1004 0x89abcdef", &["OK"]),
    ("readq 0x1000", &["OK 0x89abcdef123401ff"]),
    ("writeq 0x1000 0x1122334455667788", &["OK"]),
    ("read 0x1000 010", &["OK 0x8877665544332211"]),
    // PCI configuration: the host bridge and the ISA bridge.
    ("outl 0xcf8 0x80000000", &["OK"]),
    ("inl 0xcfc", &["OK 0x12378086"]),
    ("outl 0xcf8 0x80000800", &["OK"]),
    ("inl 0xcfc", &["OK 0x70008086"]),
    ("inw 0xcfe", &["OK 0x7000"]),
    ("inb 0xcfd", &["OK 0x0080"]),
    ("outl 0xcf8 0x8000f800", &["OK"]),
    ("inl 0xcfc", &["OK 0xffffffff"]),
    // fw_cfg: the signature.
    ("outw 0x510 0", &["OK"]),
    ("inb 0x511", &["OK 0x0051"]),
    ("inb 0x511", &["OK 0x0045"]),
    ("inb 0x511", &["OK 0x004d"]),
    ("inb 0x511", &["OK 0x0055"]),
    // CMOS memory.
    ("outb 0x70 0x40", &["OK"]),
    ("outb 0x71 0xa5", &["OK"]),
    ("inb 0x71", &["OK 0x00a5"]),
    // Lines.
    ("irq_intercept_in nosuch", &["FAIL Unknown device"]),
    ("irq_intercept_in ioapic", &["OK"]),
    ("irq_intercept_in ioapic", &["OK"]),
    (
        "set_irq_in ioapic unnamed-gpio-in 5 1",
        &["IRQ raise 5", "OK"],
    ),
    ("set_irq_in ioapic unnamed-gpio-in 5 1", &["OK"]),
    (
        "set_irq_in ioapic unnamed-gpio-in 5 0",
        &["IRQ lower 5", "OK"],
    ),
    (
        "set_irq_in ioapic unnamed-gpio-in 23 1",
        &["IRQ raise 23", "OK"],
    ),
];

#[test]
fn memory_registers_and_lines() {
    let (mut machine, mut qtest) = start(&[]);
    qtest.check(TIMELESS);
    // What the peer ends itself at.
    qtest.check(&[
        ("inb", &["FAIL an argument is missing"]),
        ("inb zz", &["FAIL 'zz' is not a number"]),
        (
            "write 0x1000 2 0x01",
            &["FAIL there are fewer bytes than the size says"],
        ),
        (
            "b64write 0x1000 2 QQ==",
            &["FAIL there are fewer bytes than the size says"],
        ),
        ("write 0x1000 1 0xzz", &["FAIL 'zz' is not a byte"]),
        (
            "read 0x1000 0xffffffff",
            &["FAIL at most 16777216 bytes at once"],
        ),
        (
            "irq_intercept_in i8259",
            &["FAIL IRQ intercept already enabled"],
        ),
        (
            "set_irq_in ioapic unnamed-gpio-in 24 1",
            &["FAIL it has 24 inputs"],
        ),
        ("", &["FAIL no command"]),
    ]);
    // Where there is nothing and beyond the end.
    qtest.check(&[
        ("readl 0xc0000000", &["OK 0x00000000ffffffff"]),
        ("writeq 0x3fffffc 0x0102030405060708", &["OK"]),
        ("writeq 0xfffffffffffffffc 1", &["OK"]),
    ]);
    machine.quit();
}

#[test]
fn the_interval_timer_runs_with_the_clock() {
    let (mut machine, mut qtest) = start(&[]);
    let both: &[&str] = &["IRQ lower 2", "IRQ raise 2"];
    qtest.check(&[
        ("irq_intercept_in ioapic", &["OK"]),
        // Channel 0, mode 2, 1193 clocks of 1.193182 MHz.
        ("outb 0x43 0x34", &["IRQ raise 2", "OK"]),
        ("outb 0x40 0xa9", &["OK"]),
        ("outb 0x40 0x04", &["OK"]),
        ("clock_step 500000", &["OK 500000"]),
        ("clock_step", &[both, &["OK 999848"]].concat()),
        ("clock_step 1000000", &[both, &["OK 1999848"]].concat()),
        (
            "clock_set 5000000",
            &[both, both, both, &["OK 5000000"]].concat(),
        ),
        ("clock_set 4000000", &["OK 5000000"]),
        // The counter as it is latched: in the first clock after the reload of 1193.
        ("clock_set 5999086", &[both, &["OK 5999086"]].concat()),
        ("outb 0x43 0x00", &["OK"]),
    ]);
    let mut byte = || {
        let answer = qtest.ask("inb 0x40");
        let digits = answer.first().and_then(|text| text.strip_prefix("OK 0x"));
        u32::from_str_radix(digits.unwrap(), 16).unwrap()
    };
    let count = byte() | byte() << 8;
    assert!((1192..=1193).contains(&count), "{count}");
    machine.quit();
}

#[test]
fn the_clock_of_the_day_runs_with_it() {
    let (mut machine, mut qtest) = start(&["-rtc", "base=2026-01-31T23:59:58"]);
    let mut at = |register: u8, expected: &str| {
        assert_eq!(qtest.ask(&format!("outb 0x70 {register}")), ["OK"]);
        assert_eq!(qtest.ask("inb 0x71"), [expected], "register {register}");
    };
    // In BCD.
    for (register, expected) in [
        (0, "OK 0x0058"),
        (2, "OK 0x0059"),
        (4, "OK 0x0023"),
        (7, "OK 0x0031"),
    ] {
        at(register, expected);
    }
    assert_eq!(qtest.ask("clock_step 2500000000"), ["OK 2500000000"]);
    let mut at = |register: u8, expected: &str| {
        assert_eq!(qtest.ask(&format!("outb 0x70 {register}")), ["OK"]);
        assert_eq!(qtest.ask("inb 0x71"), [expected], "register {register}");
    };
    for (register, expected) in [
        (0, "OK 0x0000"),
        (2, "OK 0x0000"),
        (4, "OK 0x0000"),
        (7, "OK 0x0001"),
        (8, "OK 0x0002"),
        (9, "OK 0x0026"),
    ] {
        at(register, expected);
    }
    // Its periodic interrupt, at 2 Hz; reading register C takes it back.
    qtest.check(&[
        ("irq_intercept_in ioapic", &["OK"]),
        ("outb 0x70 0x0a", &["OK"]),
        ("outb 0x71 0x2f", &["OK"]),
        // What has passed unheard: ticks, seconds, and the alarm's time, midnight.
        ("outb 0x70 0x0c", &["OK"]),
        ("inb 0x71", &["OK 0x0070"]),
        ("outb 0x70 0x0b", &["OK"]),
        ("outb 0x71 0x42", &["OK"]),
        ("clock_step 500000000", &["IRQ raise 8", "OK 3000000000"]),
        ("outb 0x70 0x0c", &["OK"]),
        ("inb 0x71", &["IRQ lower 8", "OK 0x00d0"]),
    ]);
    machine.quit();
}

#[test]
fn the_8259s_are_listened_to() {
    // By its path in the tree, too: behind one processor it is the first chip.
    for path in ["i8259", "/machine/unattached/device[1]"] {
        let (mut machine, mut qtest) = start(&[]);
        let set = |level: u8| format!("set_irq_in {path} unnamed-gpio-in 4 {level}");
        qtest.check(&[
            (&format!("irq_intercept_out {path}"), &["OK"]),
            // Vectors from 0x20, all masked but 4, edges.
            ("outb 0x20 0x11", &["OK"]),
            ("outb 0x21 0x20", &["OK"]),
            ("outb 0x21 0x04", &["OK"]),
            ("outb 0x21 0x01", &["OK"]),
            ("outb 0x21 0xff", &["OK"]),
            (&set(1), &["OK"]),
            ("outb 0x21 0xef", &["IRQ raise 0", "OK"]),
            // The edge has been seen; it waits for a processor.
            (&set(0), &["OK"]),
            ("outb 0x21 0xff", &["IRQ lower 0", "OK"]),
            ("outb 0x21 0xef", &["IRQ raise 0", "OK"]),
        ]);
        machine.quit();
        let (mut machine, mut qtest) = start(&[]);
        qtest.check(&[
            (&format!("irq_intercept_in {path}"), &["OK"]),
            (&set(1), &["IRQ raise 4", "OK"]),
            (
                &format!("set_irq_in {path} unnamed-gpio-in 15 1"),
                &["IRQ raise 15", "OK"],
            ),
            ("outb 0x43 0x34", &["IRQ raise 0", "OK"]),
        ]);
        machine.quit();
    }
}

#[test]
fn what_comes_by_itself_is_told_by_itself() {
    // A key typed at the serial port, whose interrupt is on.
    let options = ["-serial", "unix:{dir}/serial,server=on,wait=off"];
    let (mut machine, mut qtest) = start(&options);
    let mut typist = UnixStream::connect(machine.path("serial")).unwrap();
    qtest.check(&[
        ("irq_intercept_in ioapic", &["OK"]),
        ("outb 0x3fc 8", &["OK"]),
        ("outb 0x3f9 1", &["OK"]),
    ]);
    typist.write_all(b"k").unwrap();
    assert_eq!(qtest.line(), "IRQ raise 4");
    qtest.check(&[("inb 0x3f8", &["IRQ lower 4", "OK 0x006b"])]);
    machine.quit();
}

#[test]
fn connections_come_and_go() {
    let (mut machine, mut qtest) = start(&[]);
    qtest.check(&[("writeb 0 7", &["OK"])]);
    qtest.send("read");
    drop(qtest);
    let mut qtest = connect(&machine);
    qtest.check(&[("readb 0", &["OK 0x0000000000000007"])]);
    machine.quit();
}

/// The peer's answers are those expected of ours. Distributions build it without the accelerator "qtest": its processor
/// stands still, and no time passes.
#[test]
fn the_peer_answers_the_same() {
    if !is_full() {
        println!("not in the default form; RATITE_FULL=1 runs it");
        return;
    }
    let folder = new_folder();
    let socket = folder.path().join("qtest");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut peer = Command::new("qemu-system-x86_64")
        .args([
            "-M",
            "pc",
            "-m",
            "64",
            "-nodefaults",
            "-display",
            "none",
            "-S",
        ])
        .args([
            "-qtest",
            &format!("unix:{}", socket.display()),
            "-qtest-log",
            "none",
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    Qtest::new(stream).check(TIMELESS);
    peer.kill().unwrap();
    peer.wait().unwrap();
}
