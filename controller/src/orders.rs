//! Orders as daemons are told them. Nothing is decided here.

use squall_api::grpc;
use squall_api::podchaos::Scope;
use squall_model::kill::{On, Trigger, Whom};
use squall_model::plan::{NodeFault, Order, Stage};
use squall_model::stress::{Cpu, Io, IoLimit, Memory, OnOom, Size, Squeeze, Stress};

/// The fault that `order` asks for. How long it stands is said when it is sent.
pub fn fault(order: Order, experiment: &str) -> grpc::Fault {
    let Order { node: _, id, pod, container, container_id, stage, fault, until: _ } = order;
    let stage = match stage {
        Stage::Arm => grpc::Stage::Arm,
        Stage::Fire => grpc::Stage::Fire,
        Stage::Recover => grpc::Stage::Recover,
    };
    let action = match fault {
        NodeFault::Kill { signal, whom } => grpc::fault::Action::Kill(kill(signal, whom)),
        NodeFault::Freeze => grpc::fault::Action::Freeze(grpc::Freeze {}),
        NodeFault::Stress(stress) => grpc::fault::Action::Stress(self::stress(*stress)),
    };
    grpc::Fault {
        id,
        experiment: experiment.to_owned(),
        container: Some(grpc::Container {
            namespace: pod.namespace,
            pod: pod.name,
            pod_uid: pod.uid,
            name: container,
            id: container_id,
        }),
        stage: stage.into(),
        ttl: None,
        action: Some(action),
    }
}

fn kill(signal: i32, whom: Whom) -> grpc::Kill {
    match whom {
        Whom::Processes { scope, comm, exe } => {
            let scope = match scope {
                Scope::Init => grpc::Scope::Init,
                Scope::All => grpc::Scope::All,
            };
            let (comm, exe) = (comm.unwrap_or_default(), exe.unwrap_or_default());
            grpc::Kill { signal, scope: scope.into(), comm, exe, trigger: None }
        }
        Whom::Trigger(Trigger { comm, on }) => {
            let on = match on {
                On::Syscall { name, nth } => grpc::trigger::On::Syscall(grpc::SyscallTrigger { name, nth }),
                On::Exec { path } => grpc::trigger::On::Exec(grpc::ExecTrigger { path }),
                On::Connect { port } => {
                    grpc::trigger::On::Connect(grpc::ConnectTrigger { port: port.into() })
                }
            };
            let trigger = Some(grpc::Trigger { comm: comm.unwrap_or_default(), on: Some(on) });
            // A daemon that is a version older asks for a scope before it looks for a trigger.
            grpc::Kill { signal, scope: grpc::Scope::Init.into(), trigger, ..grpc::Kill::default() }
        }
    }
}

fn stress(stress: Stress) -> grpc::Stress {
    let Stress { cpu, memory, io, pids, squeeze, allow_oom, on_oom } = stress;
    let on_oom = match on_oom {
        OnOom::Stop => grpc::OnOom::Stop,
        OnOom::Restart => grpc::OnOom::Restart,
    };
    grpc::Stress {
        cpu: cpu.map(|Cpu { workers, load }| grpc::CpuStressor { workers, load }),
        memory: memory.map(self::memory),
        io: io.map(|Io { workers, bytes, path }| grpc::IoStressor { workers, bytes, path }),
        pids: pids.map(|count| grpc::PidsStressor { count }),
        squeeze: (!squeeze.is_empty()).then(|| self::squeeze(squeeze)),
        allow_oom,
        on_oom: on_oom.into(),
    }
}

fn memory(memory: Memory) -> grpc::MemoryStressor {
    let Memory { workers, size, ramp, oom_score_adj } = memory;
    let size = match size {
        Size::Bytes(bytes) => grpc::memory_stressor::Size::Bytes(bytes),
        Size::Percent(percent) => grpc::memory_stressor::Size::Percent(percent),
    };
    // At most 30 days.
    let ramp = ramp.and_then(|ramp| prost_types::Duration::try_from(ramp).ok());
    grpc::MemoryStressor { workers, size: Some(size), ramp, oom_score_adj }
}

fn squeeze(squeeze: Squeeze) -> grpc::Squeeze {
    let Squeeze { cpu_millis, memory, memory_hard, pids, io } = squeeze;
    let limit = |IoLimit { device, read_bps, write_bps, read_iops, write_iops }| grpc::IoLimit {
        device,
        read_bps: read_bps.unwrap_or_default(),
        write_bps: write_bps.unwrap_or_default(),
        read_iops: read_iops.unwrap_or_default(),
        write_iops: write_iops.unwrap_or_default(),
    };
    grpc::Squeeze {
        cpu_millis: cpu_millis.unwrap_or_default(),
        memory_bytes: memory.unwrap_or_default(),
        memory_hard,
        pids: pids.unwrap_or_default(),
        io: io.map(limit).into_iter().collect(),
    }
}
