// The tiles, head dims and rows of a block, that variants_test.cpp compiles for each kernel family.
#pragma once

namespace kvmesh::cuda {

struct VariantTile {
  int k_dim, v_dim, row_class;
};

/// Tiles of the mma kernel: the usual head dims with every row class that they have, and some that
/// are not multiples of 16, or of which one is far larger. On Hopper those that it has there.
inline constexpr VariantTile kTiles[] = {
    {64, 64, 16},   {64, 64, 128},   {96, 96, 128},   {128, 128, 16}, {128, 128, 32},
    {128, 128, 64}, {128, 128, 128}, {192, 128, 128}, {256, 256, 16}, {256, 256, 64},
    {72, 40, 16},   {40, 72, 128},   {64, 256, 64}};
inline constexpr VariantTile kTilesOnHopper[] = {{64, 64, 16},   {96, 96, 128},  {128, 128, 16},
                                                 {128, 128, 32}, {256, 256, 16}, {72, 40, 16},
                                                 {40, 72, 128}};
/// More of its tiles, for use before a release: their sizes lie between those of `kTiles`, or
/// differ from one of them in the key dims alone.
inline constexpr VariantTile kTilesBetween[] = {{64, 64, 32},   {64, 64, 64},   {96, 96, 16},
                                                {96, 96, 32},   {96, 96, 64},   {192, 128, 16},
                                                {192, 128, 32}, {192, 128, 64}, {256, 64, 128}};
/// Tiles of Hopper's decode kernel: few rows.
inline constexpr VariantTile kDecodeTiles[] = {
    {64, 64, 8},    {64, 64, 32},   {96, 96, 8},   {96, 96, 32},   {128, 128, 8},
    {128, 128, 16}, {128, 128, 32}, {192, 128, 8}, {192, 128, 16}, {192, 128, 32},
    {256, 256, 8},  {256, 256, 16}, {256, 64, 32}, {64, 256, 16}};
/// The same over float8 pages.
inline constexpr VariantTile kFloat8Tiles[] = {
    {64, 64, 32}, {128, 128, 8}, {128, 128, 32}, {192, 192, 8}, {256, 256, 16}};
/// Tiles of Hopper's prefill kernel: many rows.
inline constexpr VariantTile kPrefillTiles[] = {{64, 64, 64},   {64, 64, 128},  {96, 96, 64},
                                                {96, 96, 128},  {128, 128, 64}, {128, 128, 128},
                                                {192, 128, 64}, {192, 128, 128}};
/// Those of these tiles that it has over pages whose keys warps gather.
inline constexpr VariantTile kPrefillGatherTiles[] = {
    {64, 64, 64}, {64, 64, 128}, {128, 128, 64}, {128, 128, 128}, {192, 128, 64}, {192, 128, 128}};
inline constexpr VariantTile kWidePrefillGatherTiles[] = {{256, 256, 64}, {256, 256, 128}};
/// The same with wide outputs, for which a block has no masks of each head.
inline constexpr VariantTile kWidePrefillTiles[] = {{160, 160, 64}, {160, 160, 128},
                                                    {224, 224, 64}, {224, 224, 128},
                                                    {256, 256, 64}, {256, 256, 128}};
/// Tiles of the prefill kernel over float8 pages, and those with wide outputs.
inline constexpr VariantTile kFloat8PrefillTiles[] = {
    {64, 64, 64},   {64, 64, 128},   {128, 128, 64}, {128, 128, 128},
    {192, 128, 64}, {192, 128, 128}, {64, 128, 128}, {256, 64, 128}};
inline constexpr VariantTile kWideFloat8PrefillTiles[] = {
    {192, 192, 64}, {256, 256, 64}, {64, 256, 64}};
/// Tiles of the decode kernel with latent pages, and of the latent kernel.
inline constexpr VariantTile kLatentDecodeTiles[] = {
    {576, 512, 8}, {576, 512, 16}, {576, 512, 32}, {320, 256, 16}};
inline constexpr VariantTile kLatentTiles[] = {{576, 512, 64}};
/// Tiles of the latent kernel for float8 pages: one team and two, and other dims.
inline constexpr VariantTile kLatentFloat8Tiles[] = {
    {576, 512, 8}, {576, 512, 16}, {576, 512, 32}, {576, 512, 64}, {192, 128, 8}, {320, 256, 64}};
/// Tiles of the kernel of exact sums: one warp of rows, several, and wide outputs.
inline constexpr VariantTile kExactTiles[] = {
    {64, 64, 8},   {128, 128, 8},  {128, 128, 16}, {128, 128, 64}, {96, 96, 32},   {192, 128, 128},
    {256, 256, 8}, {256, 256, 64}, {64, 144, 16},  {72, 40, 8},    {576, 512, 16}, {40, 512, 64}};
/// Tiles of the plain kernel: its dims are free, and its blocks have no rows.
inline constexpr VariantTile kPlainTiles[] = {{128, 128, 16}, {5, 3, 16}, {576, 512, 16}};

}  // namespace kvmesh::cuda
