-- The rows of a ledger that the last version of schema 1 wrote under the key 000102...1f.
INSERT INTO umbra_ledger VALUES (
  1,
  'genesis',
  '2026-11-21T09:35:58.868736+00:00',
  NULL,
  NULL,
  'genesis',
  '{"key":"5f0899afe4584520","ledger":"4239b2ac091c2152f13cd489fd5f5bfc","schema":1}',
  '0000000000000000000000000000000000000000000000000000000000000000',
  'bb45e8df9d76f1911be3957d43ea4f85704997b2268fa9dce29123068d988067'
);
INSERT INTO umbra_ledger VALUES (
  2,
  'declare',
  '2026-11-21T09:35:58.872615+00:00',
  'digits',
  NULL,
  'declare:digits',
  '{"delta":1e-05,"epsilon":10.0}',
  'bb45e8df9d76f1911be3957d43ea4f85704997b2268fa9dce29123068d988067',
  '9405093ec8783b9666adf01155df88d550a57c3849703ad3354c25e98fbf3a70'
);
INSERT INTO umbra_ledger VALUES (
  3,
  'bind',
  '2026-11-21T09:35:59.746910+00:00',
  'digits',
  NULL,
  'bind:v1-5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e',
  '{"fingerprint":"v1-5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e","records":1500}',
  '9405093ec8783b9666adf01155df88d550a57c3849703ad3354c25e98fbf3a70',
  '264ea7ab81f02266e870f88292b9bdf345386a7544bb3770b04eddd4e6bbaba8'
);
INSERT INTO umbra_ledger VALUES (
  4,
  'reserve',
  '2026-11-21T09:35:59.750952+00:00',
  'digits',
  'r-b0bad2901a2a9df5',
  'reserve:reserve-1',
  '{"accountant":"rdp","fingerprint":"v1-5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e","plan":[{"mechanism":{"noise_multiplier":20.0,"steps":1,"type":"gaussian"},"name":"warmup"},{"mechanism":{"noise_multiplier":4.0,"sampling_probability":0.0625,"steps":200,"type":"subsampled_gaussian"},"name":"dp-sgd"}],"records":1500,"records_per_unit":1,"relation":"add/remove with zero-out","run":"digits-1","spec":null,"unit":"ein Bild von Zo\u00eb''s Hand","void":false}',
  '264ea7ab81f02266e870f88292b9bdf345386a7544bb3770b04eddd4e6bbaba8',
  '8969665790f1858ca46b7d8051b6dd55b87429b014680af0ce9d7829409f9ae8'
);
INSERT INTO umbra_ledger VALUES (
  5,
  'charge',
  '2026-11-21T09:35:59.755344+00:00',
  'digits',
  'r-b0bad2901a2a9df5',
  'charge:r-b0bad2901a2a9df5:w',
  '{"attempt":1,"charged":{"dp-sgd":0,"warmup":1},"component":"warmup","steps":1}',
  '8969665790f1858ca46b7d8051b6dd55b87429b014680af0ce9d7829409f9ae8',
  '0b1d1fae5230b31a5487228c4fb707f2aeb21018c774a5e3b05383abc29bbaa2'
);
INSERT INTO umbra_ledger VALUES (
  6,
  'charge',
  '2026-11-21T09:35:59.757862+00:00',
  'digits',
  'r-b0bad2901a2a9df5',
  'charge:r-b0bad2901a2a9df5:a',
  '{"attempt":1,"charged":{"dp-sgd":100,"warmup":1},"component":"dp-sgd","steps":100}',
  '0b1d1fae5230b31a5487228c4fb707f2aeb21018c774a5e3b05383abc29bbaa2',
  '74714aba9a931e8dbeaf0c86120e3e20a7ecfa9d054338976bdaed04e0d7bf3c'
);
INSERT INTO umbra_ledger VALUES (
  7,
  'charge',
  '2026-11-21T09:35:59.759715+00:00',
  'digits',
  'r-b0bad2901a2a9df5',
  'charge:r-b0bad2901a2a9df5:b',
  '{"attempt":2,"charged":{"dp-sgd":120,"warmup":1},"component":"dp-sgd","steps":20}',
  '74714aba9a931e8dbeaf0c86120e3e20a7ecfa9d054338976bdaed04e0d7bf3c',
  '05c138b4d96a12b84b2b7f20a19132e2fe2e83dbf86e04e6497266f47c28ec8c'
);
INSERT INTO umbra_ledger VALUES (
  8,
  'settle',
  '2026-11-21T09:35:59.764988+00:00',
  'digits',
  'r-b0bad2901a2a9df5',
  'settle:r-b0bad2901a2a9df5',
  '{"charged":{"dp-sgd":120,"warmup":1}}',
  '05c138b4d96a12b84b2b7f20a19132e2fe2e83dbf86e04e6497266f47c28ec8c',
  '8e8961eece09469fbd0b437675c4850ba1a449ed954684fabbbed65500cad03d'
);
INSERT INTO umbra_ledger VALUES (
  9,
  'export',
  '2026-11-21T09:35:59.768563+00:00',
  'digits',
  'r-b0bad2901a2a9df5',
  'export:r-b0bad2901a2a9df5:abababababababababababababababababababababababababababababababab',
  '{"description":"60000 images","manifest":"abababababababababababababababababababababababababababababababab","run":"digits-1","used":{"dp-sgd":120,"warmup":1},"void":false}',
  '8e8961eece09469fbd0b437675c4850ba1a449ed954684fabbbed65500cad03d',
  'a91a8f7e08562bc4115898910195ed0c75a1bf4e80dfd601bde4db12b85a2002'
);
INSERT INTO umbra_ledger VALUES (
  10,
  'reserve',
  '2026-11-21T09:35:59.772016+00:00',
  'digits',
  'r-d28a49286c83be78',
  'reserve:reserve-2',
  '{"accountant":"rdp","fingerprint":"v1-5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e","plan":[{"mechanism":{"noise_multiplier":4.0,"sampling_probability":0.0625,"steps":50,"type":"subsampled_gaussian"},"name":"dp-sgd"}],"records":1500,"records_per_unit":1,"relation":"add/remove with zero-out","run":"digits-2","spec":null,"unit":"ein Bild von Zo\u00eb''s Hand","void":false}',
  'a91a8f7e08562bc4115898910195ed0c75a1bf4e80dfd601bde4db12b85a2002',
  '14f27c9aa437d62fa01302e4d106ceede7f1a8bc8d75be8b3885516e5223b5de'
);
INSERT INTO umbra_ledger VALUES (
  11,
  'charge',
  '2026-11-21T09:35:59.773718+00:00',
  'digits',
  'r-d28a49286c83be78',
  'charge:r-d28a49286c83be78:c',
  '{"attempt":1,"charged":{"dp-sgd":10},"component":"dp-sgd","steps":10}',
  '14f27c9aa437d62fa01302e4d106ceede7f1a8bc8d75be8b3885516e5223b5de',
  'a240ae4f9e685f040ed3155e2afdf708a10ab68e60cddaa04cd49b86dd12bcf6'
);
