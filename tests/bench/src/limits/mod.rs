//! What figures are compared with: the AMQP library and ONNX Runtime, each alone and at its best.

pub(crate) mod echo;
pub(crate) mod raw_loop;
pub(crate) mod sample;
