//! What the machine is, its processors, and its buttons.

use std::sync::Arc;

use api::{
    BalloonArgs, BalloonInfo, CpuInfoFast, CpuInfoFastBranch, CpuInstanceProperties,
    CurrentMachineParams, KvmInfo, MachineCommands, MachineInfo, MemoryInfo, MemsaveArgs,
    PmemsaveArgs, QmpError, QueryMachinesArgs, ShutdownCause, SysEmuTarget, TargetInfo, UuidInfo,
};
use monitor::Caller;

use super::{MachineHandlers, memory};
use crate::board::{BOARDS, Board, Chips};
use crate::config::Topology;
use crate::cpu_thread::CpuShared;

/// The UUID of a machine that was given none.
pub(crate) const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

fn machine_info(board: &Board) -> MachineInfo {
    MachineInfo {
        name: board.name.to_owned(),
        alias: board.aliases.first().map(|alias| (*alias).to_owned()),
        is_default: board.is_default.then_some(true),
        cpu_max: i64::from(board.max_cpus),
        hotpluggable_cpus: false,
        numa_mem_supported: false,
        deprecated: false,
        default_cpu_type: board.default_cpu_type.map(str::to_owned),
        default_ram_id: Some(board.default_ram_id.to_owned()),
        acpi: board.chips != Chips::None,
        compat_props: None,
    }
}

/// Where a processor sits among sockets, dies, cores and threads.
fn place(topology: &Topology, index: u32) -> CpuInstanceProperties {
    let split = |value: u32, by: u32| (value / by.max(1), value % by.max(1));
    let (cores, thread) = split(index, topology.threads);
    let (dies, core) = split(cores, topology.cores);
    let (socket, die) = split(dies, topology.dies);
    let has_dies = topology.dies > 1;
    CpuInstanceProperties {
        node_id: None,
        drawer_id: None,
        book_id: None,
        socket_id: Some(i64::from(socket)),
        die_id: has_dies.then_some(i64::from(die)),
        cluster_id: None,
        module_id: None,
        core_id: Some(i64::from(core)),
        thread_id: Some(i64::from(thread)),
    }
}

fn cpu_info(topology: &Topology, cpu: &CpuShared) -> CpuInfoFast {
    let index = cpu.index();
    CpuInfoFast {
        cpu_index: i64::from(index),
        qom_path: format!("/machine/unattached/device[{index}]"),
        thread_id: i64::from(cpu.thread_id()),
        props: Some(place(topology, index)),
        target: CpuInfoFastBranch::X8664,
    }
}

impl MachineCommands<Caller> for MachineHandlers {
    async fn query_target(&self, _caller: Arc<Caller>) -> Result<TargetInfo, QmpError> {
        Ok(TargetInfo {
            arch: SysEmuTarget::X8664,
        })
    }

    async fn query_cpus_fast(&self, _caller: Arc<Caller>) -> Result<Vec<CpuInfoFast>, QmpError> {
        self.ask(|control| {
            let topology = control.config.topology;
            let cpus = control.cpus.iter();
            cpus.map(|cpu| cpu_info(&topology, cpu)).collect()
        })
        .await
    }

    async fn query_machines(
        &self,
        _caller: Arc<Caller>,
        arguments: QueryMachinesArgs,
    ) -> Result<Vec<MachineInfo>, QmpError> {
        let mut machines: Vec<MachineInfo> = BOARDS.iter().map(machine_info).collect();
        if arguments.compat_props == Some(true) {
            for machine in &mut machines {
                machine.compat_props = Some(Vec::new());
            }
        }
        Ok(machines)
    }

    async fn query_current_machine(
        &self,
        _caller: Arc<Caller>,
    ) -> Result<CurrentMachineParams, QmpError> {
        let chips = self.ask(|control| control.config.board.chips).await?;
        Ok(CurrentMachineParams {
            wakeup_suspend_support: chips == Chips::Pc,
        })
    }

    async fn query_uuid(&self, _caller: Arc<Caller>) -> Result<UuidInfo, QmpError> {
        let uuid = self.ask(|control| control.config.uuid.clone()).await?;
        Ok(UuidInfo {
            uuid: uuid.unwrap_or_else(|| NO_UUID.to_owned()),
        })
    }

    async fn query_kvm(&self, _caller: Arc<Caller>) -> Result<KvmInfo, QmpError> {
        let enabled = self.ask(|control| control.is_kvm()).await?;
        Ok(KvmInfo {
            enabled,
            // In this program, whatever the host has.
            present: true,
        })
    }

    async fn system_reset(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        self.ask(|control| control.reset(ShutdownCause::HostQmpSystemReset))
            .await
    }

    async fn system_powerdown(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        self.ask(|control| control.power_button()).await
    }

    async fn system_wakeup(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        Ok(self.ask(|control| control.wake_up()).await??)
    }

    async fn inject_nmi(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        self.ask(|control| match control.cpus.is_empty() {
            true => Err(QmpError::generic("machine does not provide NMIs")),
            false => {
                control.inject_nmi();
                Ok(())
            }
        })
        .await?
    }

    async fn memsave(&self, _caller: Arc<Caller>, arguments: MemsaveArgs) -> Result<(), QmpError> {
        memory::memsave(self, arguments).await
    }

    async fn pmemsave(
        &self,
        _caller: Arc<Caller>,
        arguments: PmemsaveArgs,
    ) -> Result<(), QmpError> {
        memory::pmemsave(self, arguments).await
    }

    async fn balloon(&self, _caller: Arc<Caller>, arguments: BalloonArgs) -> Result<(), QmpError> {
        self.ask(move |control| control.set_balloon(arguments.value))
            .await?
    }

    async fn query_balloon(&self, _caller: Arc<Caller>) -> Result<BalloonInfo, QmpError> {
        let actual = self.ask(|control| control.balloon_bytes()).await??;
        Ok(BalloonInfo { actual })
    }

    async fn query_memory_size_summary(
        &self,
        _caller: Arc<Caller>,
    ) -> Result<MemoryInfo, QmpError> {
        let base_memory = self.ask(|control| control.config.ram_bytes).await?;
        Ok(MemoryInfo {
            base_memory,
            plugged_memory: Some(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_their_places() {
        let topology = Topology {
            cpus: 8,
            sockets: 2,
            dies: 1,
            cores: 2,
            threads: 2,
        };
        let places: Vec<_> = (0..8)
            .map(|index| {
                let place = place(&topology, index);
                (place.socket_id, place.core_id, place.thread_id)
            })
            .collect();
        assert_eq!(places[0], (Some(0), Some(0), Some(0)));
        assert_eq!(places[3], (Some(0), Some(1), Some(1)));
        assert_eq!(places[6], (Some(1), Some(1), Some(0)));
    }
}
