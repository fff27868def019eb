//! A small, real Tree of Thoughts engine (Yao et al. 2023) for the gateway to stand in front of: the Game of 24.

pub mod admit;
pub mod chat;
pub mod evaluate;
pub mod events;
pub mod facades;
pub mod mcp;
pub mod model;
pub mod number;
pub mod openapi;
pub mod propose;
pub mod run;
pub mod search;
pub mod serve;
pub mod tools;
pub mod value;
