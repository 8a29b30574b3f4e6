/**
 * A target for pbjs: its static module, without what the codec does not need. `google.api` and the descriptors that it
 * extends are only for the annotations, and the synthetic oneofs of `optional` fields only for reflection.
 */
const staticModule = require('protobufjs-cli/targets/static-module');

const withoutSyntheticOneofs = (type) => {
  for (const oneof of type.oneofsArray) if (oneof.isProto3Optional) delete type.oneofs[oneof.name];
  type._oneofsArray = null;
};

const visitTypes = (namespace, visit) => {
  for (const item of namespace.nestedArray) {
    if (item.oneofs !== undefined || item.fields !== undefined) visit(item);
    if (item.nestedArray !== undefined) visitTypes(item, visit);
  }
};

module.exports = (root, options, callback) => {
  const google = root.lookup('google');
  google.remove(google.get('api'));
  const wellKnown = google.get('protobuf');
  for (const item of wellKnown.nestedArray) if (item.name !== 'Any') wellKnown.remove(item);
  visitTypes(root, (type) => type.oneofs !== undefined && withoutSyntheticOneofs(type));
  staticModule(root, options, callback);
};
