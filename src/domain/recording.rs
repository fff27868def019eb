//! The kinds of frame that a recording is made of.

/// What a frame holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum FrameKind {
    /// Request line and headers, as JSON.
    RequestHead = 1,
    /// A piece of the request's body, after the route's record mask; of a WebSocket, one message of the client.
    RequestBody = 2,
    /// Status and headers, as JSON.
    ResponseHead = 3,
    /// A piece of the response's body as the client saw it; of a WebSocket, one message to the client.
    ResponseBody = 4,
    /// The exchange ended; the payload says how.
    End = 5,
    /// Trailers of the request, as JSON.
    RequestTrailers = 6,
    /// Trailers of the response, as JSON.
    ResponseTrailers = 7,
    /// Status and headers of an interim answer, as JSON.
    InterimHead = 8,
}

impl FrameKind {
    /// The kind that a byte stands for.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::RequestHead),
            2 => Some(Self::RequestBody),
            3 => Some(Self::ResponseHead),
            4 => Some(Self::ResponseBody),
            5 => Some(Self::End),
            6 => Some(Self::RequestTrailers),
            7 => Some(Self::ResponseTrailers),
            8 => Some(Self::InterimHead),
            _ => None,
        }
    }
}
