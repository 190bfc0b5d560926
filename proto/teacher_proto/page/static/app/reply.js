// A reply of the server as a sequence to look at, as teacher_proto.page.document makes it.

// The sequence of one continuation; `student`: its log-probabilities, one for each row.
// Throws an Error where there are no rows, or not as many as log-probabilities.
export function sequenceOfReply(name, reply, index = 0, student = null) {
  const result = reply.results[index];
  if (result.status !== "OK") throw new Error(`There are no rows: ${result.status} ${result.detail}`.trim());
  if (student && student.length !== result.rows.length) {
    throw new Error(`There are ${student.length} log-probabilities of the student for ${result.rows.length} tokens.`);
  }
  const sequence = {
    name,
    tokens: result.rows.map((row, at) => {
      const token = tokenOf(row);
      if (student) token.student = student[at];
      return token;
    }),
  };
  if ("chunk_log_likelihood" in result) sequence.chunks = result.chunk_log_likelihood;
  return sequence;
}

function tokenOf(row) {
  const token = { id: row.token_id, text: row.token };
  if ("sampled_log_prob" in row) token.log_prob = row.sampled_log_prob;
  if ("log_tail" in row) token.log_tail = row.log_tail;
  if ("top" in row) token.top = row.top.map((entry) => [entry.token_id, entry.token, entry.log_prob]);
  if (row.realignment) {
    token.class = row.realignment.position_class;
    if (row.realignment.mask_reason !== null) token.reason = row.realignment.mask_reason;
    for (const key of ["coverage", "open_mass", "lost_mass", "chunk"]) token[key] = row.realignment[key];
  }
  return token;
}
