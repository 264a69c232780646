//! The laws of the planner, on a small world that keeps the promises of the API server: effects are carried
//! out on typed pods, views may be stale, the process may crash between any two steps, the API may fail, and
//! people meddle. Whatever happens, at the end every pod has its own images and nothing of ours.

mod container;
mod daemon;
mod failure;
mod halt;
mod kill;
mod moves;
mod node;
mod sim;
mod steady;
mod times;
mod trigger;
mod turn;

const CASES: u32 = 512;
