//! Laws of selection: the draw, the arithmetic of the modes, the selector, and who may be hit.

mod draw;
mod eligible;
mod matching;
mod pods;
mod views;
mod world;
