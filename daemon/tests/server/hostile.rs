//! What a hostile controller could send: mostly what makes sense, and anything at all in its place now and then.
//!
//! Of a container that its caller names; so what makes sense can also be carried out, where that container is a real one.

use std::sync::{
    Once,
    atomic::{AtomicUsize, Ordering},
};

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use squall_api::grpc::{self, fault::Action, trigger::On};

/// What makes sense in a state.
#[derive(Clone)]
pub struct Usual {
    /// The node.
    pub node: String,
    /// The container of every fault.
    pub container: grpc::Container,
    /// Where IO stress writes.
    pub path: String,
}

fn text(usual: &str) -> impl Strategy<Value = String> + Clone + use<> {
    let hostile = prop_oneof![
        Just(String::new()),
        Just("/".repeat(300)),
        Just("../../../etc/passwd".to_owned()),
        any::<String>(),
    ];
    prop_oneof![24 => Just(usual.to_owned()), 1 => hostile]
}

fn number<T: Arbitrary + Clone + 'static>(usual: T) -> impl Strategy<Value = T> + Clone
where
    T::Strategy: Clone,
{
    prop_oneof![24 => Just(usual), 1 => any::<T>()]
}

fn action(usual: &Usual) -> impl Strategy<Value = Action> + use<> {
    let on = prop_oneof![
        (text("fsync"), number(3_u32))
            .prop_map(|(name, nth)| On::Syscall(grpc::SyscallTrigger { name, nth })),
        text("/bin/x").prop_map(|path| On::Exec(grpc::ExecTrigger { path })),
        number(5432_u32).prop_map(|port| On::Connect(grpc::ConnectTrigger { port })),
    ];
    let trigger =
        (text("x"), prop::option::weighted(0.9, on)).prop_map(|(comm, on)| grpc::Trigger { comm, on });
    let (comm, exe) =
        (prop_oneof![4 => text(""), 1 => text("x")], prop_oneof![4 => text(""), 1 => text("/bin/x")]);
    let at_once = (number(9), prop_oneof![24 => 1..3, 1 => any::<i32>()], comm, exe)
        .prop_map(|(signal, scope, comm, exe)| grpc::Kill { signal, scope, comm, exe, trigger: None });
    let waiting = (number(9), trigger).prop_map(|(signal, trigger)| grpc::Kill {
        signal,
        trigger: Some(trigger),
        ..grpc::Kill::default()
    });
    // As many bytes as the machine has would be taken at their word.
    let stress = (number(1_u32), number(50_u32), 0_u64..1 << 20, text(&usual.path), number(64_u64)).prop_map(
        |(workers, load, bytes, path, limit)| {
            Action::Stress(grpc::Stress {
                cpu: Some(grpc::CpuStressor { workers, load }),
                io: Some(grpc::IoStressor { workers, bytes, path }),
                squeeze: Some(grpc::Squeeze { pids: limit, ..grpc::Squeeze::default() }),
                ..grpc::Stress::default()
            })
        },
    );
    prop_oneof![
        at_once.prop_map(Action::Kill),
        waiting.prop_map(Action::Kill),
        stress,
        Just(Action::Freeze(grpc::Freeze {})),
    ]
}

/// A state of up to two faults.
pub fn state(usual: &Usual) -> impl Strategy<Value = grpc::NodeState> + use<> {
    let grpc::Container { namespace, pod, pod_uid, name, id } = &usual.container;
    let container = (text(namespace), text(pod), text(pod_uid), text(name), text(id)).prop_map(
        |(namespace, pod, pod_uid, name, id)| grpc::Container { namespace, pod, pod_uid, name, id },
    );
    let ttl =
        (number(30_i64), number(0_i32)).prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
    let fault = (
        any::<String>(),
        text("ns/x"),
        prop::option::weighted(0.97, container),
        // Mostly to be carried out.
        prop_oneof![16 => Just(grpc::Stage::Fire as i32), 8 => 1..4, 1 => any::<i32>()],
        prop::option::of(ttl),
        prop::option::weighted(0.9, action(usual)),
    )
        .prop_map(|(id, experiment, container, stage, ttl, action)| grpc::Fault {
            id,
            experiment,
            container,
            stage,
            ttl,
            action,
        });
    let generation = (Just(1), any::<u64>()).prop_map(|(term, counter)| grpc::Generation { term, counter });
    let usual = usual.node.clone();
    let node = prop_oneof![24 => Just(usual), 1 => any::<String>()];
    (prop::option::weighted(0.97, generation), node, prop::collection::vec(fault, 0..3))
        .prop_map(|(generation, node, faults)| grpc::NodeState { generation, node, faults })
}

/// What `strategy` makes of the same seed every time.
pub fn samples<S: Strategy>(strategy: S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("a sample").current()).collect()
}

/// How many panics there were in this process since the first call, in whichever task: each would end a real daemon.
pub fn panics() -> usize {
    static HOOK: Once = Once::new();
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    HOOK.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            told(panic);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}
